"""ROME: a rank-one change of one matrix, at the subject (Meng et al. 2022; r-ROME: Gupta et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from editcore import algebra, spans, statistics
from editcore.anatomy import Site
from editcore.errors import Diverged
from editcore.handle import Handle
from editcore.methods.base import Work, setting
from editcore.patch import LowRank, Patch
from editcore.records import EditRequest, Progress, to_plain
from editcore.trace import capture

NOT_ENOUGH = 0.7  # nats: a search that ends above this has not made the answer likely
SMALL_ANGLE = 0.02  # cosine below which the original form divides by almost nothing
# Short sentences about a subject that ask nothing in particular: where else its name may stand.
FRAMES = (
    "{}", "{} is", "The story of {}", "What about {}", "I heard of {}", "{}'s", "Q: Tell me about {}",
    "A book about {}",
    "When people think of {}", "Which of these is {}", "In the world of {}", "Q: What is {}", "The name {}",
    "Everybody knows {}", "On {}", "Facts about {}",
)  # fmt: skip


@dataclass(frozen=True)
class ROME:
    """Rewrites one association in the down-projection W of one block.

        W' = W + Lambda (C^-1 k)^T,   Lambda = (v* - W k) / ((C^-1 k)^T k)          (Meng et al. 2022, Eq. 2)

    k: mean input of W at the subject's last token over contexts -> `key`
    v* = v + delta: the output that makes the model give the answer (Eq. 4) -> `value.delta`
    C: second moment of W's inputs -> `moment`

    The default is r-ROME: the same mean key stands in numerator and denominator, which keeps the update bounded
    (arXiv 2403.07175). The `original` form divides by the key of the bare prompt instead, as first published code did.
    The `wide` form is ours: the direction u fits the keys k_j of every token at once, in the contexts and in `FRAMES`
    (neutral sentences about the subject), so that the same name in another wording gets the whole change and its
    neighbours none:

        u = C^-1 K (K^T C^-1 K + eps I)^-1 t,   W' = W + delta u^T,   K = [k_1 ... k_n],   t_j = 1 at the subject or 0
    Several requests are computed one after the other, each on top of those before it.
    """

    name: ClassVar[str] = "rome"
    title: ClassVar[str] = "ROME"
    sentence: ClassVar[str] = "Rewrites one fact where the model looks up the subject: a rank-one change of one matrix."
    paper: ClassVar[str] = "Meng et al. 2022, arXiv 2202.05262; r-ROME: arXiv 2403.07175"
    needs: ClassVar[tuple[str, ...]] = ("subject", "statistics")

    layer: int | None = setting(
        None, "Block to edit (0 = first); empty: chosen for the model", low=0, high=1000, kind="int"
    )
    form: str = setting(
        "r-rome",
        "r-rome uses one mean key; original is the first published form; wide fits the subject in many wordings",
        choices=("r-rome", "wide", "original"),
    )
    contexts: int = setting(
        20, "Texts put in front of the prompt, so that the edit holds in running text", low=0, high=100
    )
    steps: int = setting(20, "Most steps of the search for the new value", low=1, high=1000)
    rate: float = setting(0.5, "Learning rate of that search", low=1e-6, high=100.0)
    decay: float = setting(0.5, "Pull of the new value towards the old one", low=0.0, high=1000.0)
    limit: float = setting(4.0, "Largest change of the value, in lengths of the old value", low=0.01, high=1000.0)
    kl: float = setting(0.0625, "Weight of keeping what else is said about the subject", low=0.0, high=1000.0)
    enough: float = setting(0.05, "Stop the search at this loss", low=0.0, high=10.0)
    covariance: bool = setting(True, "Steer clear of what the matrix usually stores (needs statistics)")

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """The one block that is edited: the setting, or a third of the way up."""
        return (len(handle.anatomy.blocks) // 3 if self.layer is None else self.layer,)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One rank-one part per request.

        Raises:
            SubjectNotFound: a request has no subject, or it is not in its prompt.
            Diverged: the search or the update is not finite, or the original form divides by almost nothing.
            Cancelled: stopped between two steps.
        """
        handle = work.handle
        patch = Patch(
            (), handle.name, handle.fingerprint, self.name, asdict(self), tuple(to_plain(r) for r in requests)
        )
        parts: list[LowRank] = []
        for request in requests:
            done = Patch(tuple(parts), handle.name, handle.fingerprint, self.name)
            with handle.using([done]):
                parts.append(self._part(work, request))
        # One part a module keeps a patch small to attach: columns side by side are the exact sum.
        merged = LowRank(parts[0].path, torch.cat([p.read for p in parts]), torch.cat([p.write for p in parts]))
        whole = Patch((merged,), patch.model, patch.fingerprint, patch.method, patch.settings, patch.requests)
        whole.check_finite()
        return whole

    def _part(self, work: Work, request: EditRequest) -> LowRank:
        handle, site = work.handle, work.handle.anatomy.site(self.layers(work.handle)[0])
        subject = request.subject or ""
        bare = spans.encode(handle.tokenizer, request.prompt, request.target, subject)
        essence = spans.encode(handle.tokenizer, f"{subject} is a", "", subject)
        spaced = spans.encode(handle.tokenizer, f" {request.prompt}", request.target, subject)
        rows = algebra.behind(algebra.contexts(handle, self.contexts), bare, spaced, _lead(handle))
        if bare.subject == 0:
            work.notes.append(
                "The subject is the first token of the prompt, where keys are unusual; the contexts soften this."
            )
        moment = statistics.moment(handle, site, work.home, work.report, work.stop) if self.covariance else None

        def listen(step: int, loss: float) -> None:
            work.report(Progress("edit", step, self.steps, loss, "searching for the new value"))
            work.check()

        dials = algebra.Search(self.steps, self.rate, self.decay, self.limit, self.kl, self.enough)
        value = algebra.search_value(handle, site, rows, essence, dials, listen)
        if value.clamped and value.loss > NOT_ENOUGH:
            work.notes.append("The new value reached its length limit; a higher limit may be needed.")
        key, bare_key = value.keys.mean(0), value.keys[0]
        direction = moment.solve(key)[:, 0] if moment else key.double()
        if self.form == "wide":
            keys, wanted = _wide_keys(handle, site, rows, subject)
            solved = moment.solve(keys.T) if moment else keys.T
            read, write = algebra.fit_all(solved, keys, wanted), value.delta
        elif self.form == "r-rome":
            # v* - (W k_mean + b), v* = v(bare) + delta: the module is affine, so its output at the mean is the mean.
            read, write = algebra.rank_one(direction, key, value.values[0] + value.delta - value.values.mean(0))
        else:
            cosine = torch.cosine_similarity(direction, bare_key.double(), dim=0)
            if abs(float(cosine)) < SMALL_ANGLE:
                raise Diverged(
                    f"The original form would divide by almost nothing (cosine {float(cosine):.1e}).",
                    "Such an edit damages the whole model.",
                    "Use the r-rome form.",
                )
            read, write = algebra.rank_one(direction, bare_key, value.delta)
        return LowRank(site.path, read[None], write[None])


def _lead(handle: Handle) -> int:
    """Number of tokens the tokenizer puts in front of every text."""
    return len(handle.tokenizer("a")["input_ids"]) - len(handle.tokenizer("a", add_special_tokens=False)["input_ids"])


@torch.no_grad()
def _wide_keys(handle: Handle, site: Site, rows: Sequence[spans.Row], subject: str) -> tuple[Tensor, Tensor]:
    """The site's inputs at every token of `rows` and `FRAMES` [tokens, d_in], fp64, and the reading wanted of each.

    1 at the subject's last token, 0 at any other token; the same token elsewhere is left out.
    """
    frames = [spans.encode(handle.tokenizer, frame.format(subject), "", subject) for frame in FRAMES]
    every = [*rows, *frames]
    ids, mask = handle.batch([r.ids for r in every])
    with capture({"keys": site.module}, inputs=True, stop=True) as seen:
        handle.model(input_ids=ids, attention_mask=mask, use_cache=False)
    line = torch.arange(len(every), device=ids.device)
    at = torch.tensor([r.subject for r in every], device=ids.device)
    wanted = torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
    wanted[line, at] = 1.0
    kept = mask.bool() & ((ids != ids[line, at][:, None]) | (wanted > 0))
    return seen["keys"].reshape(*ids.shape, -1)[kept].double(), wanted[kept]
