"""ROME: a rank-one change of one matrix, at the subject (Meng et al. 2022; r-ROME: Gupta et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from editcore import algebra, dials, statistics, subject
from editcore.anatomy import Site
from editcore.errors import Diverged
from editcore.handle import Handle
from editcore.method import Cost, Work, made_by, setting
from editcore.patch import LowRank, Patch
from editcore.records import EditRequest, Progress
from editcore.spread import cost, sites

WIDE = 4  # the keys of every token, fp64: as read, half solved, solved, and one of them in passing
SMALL_ANGLE = 0.02  # cosine below which the original form divides by almost nothing


@dataclass(frozen=True)
class ROME:
    """Rewrites one association in the down-projection W of one block.

        W' = W + Lambda (C^-1 k)^T,   Lambda = (v* - W k) / ((C^-1 k)^T k)          (Meng et al. 2022, Eq. 2)

    k: mean input of W at the subject's last token over contexts -> `key`
    v* = v + delta: the output that makes the model give the answer (Eq. 4) -> `value.delta`
    C: second moment of W's inputs -> `moment`

    The default is r-ROME: the same mean key stands in numerator and denominator, which keeps the update bounded
    (arXiv 2403.07175). The `original` form divides by the key of the bare prompt instead, as first published code did.
    Where the mean key is read is a setting: `prompt`, in the prompt behind each context, as published code does; or
    `subject`, in the prompt and in short sentences about the subject alone, nearer to the paper's Eq. 3. Then k stands
    for the name in any wording, its value is taken as W k, and v* = W k + delta.
    The `wide` form is ours. One mean key leaves the other words of a prompt with a share of a large delta; here the
    direction u fits the keys k_j of every token of those texts, 1 at the subject's last and 0 elsewhere:

        u = C^-1 K (K^T C^-1 K + eps I)^-1 t,   W' = W + delta u^T                        -> `algebra.fit_all`

    Several requests are computed one after the other, each on top of those before it.
    """

    name: ClassVar[str] = "rome"
    title: ClassVar[str] = "ROME"
    sentence: ClassVar[str] = "Rewrites one fact where the model looks up the subject: a rank-one change of one matrix."
    remedy: ClassVar[str] = "Try more steps, a higher limit or another layer, or correct the subject of the prompt."
    paper: ClassVar[str] = "Meng et al. 2022, arXiv 2202.05262; r-ROME: arXiv 2403.07175"
    needs: ClassVar[tuple[str, ...]] = ("subject", "statistics")
    one_stack: ClassVar[str] = subject.ONE_STACK

    layer: int | None = dials.block()
    form: str = setting(
        "r-rome",
        "r-rome divides by the mean key, original by the bare prompt's key; wide also holds the other words still",
        choices=("r-rome", "wide", "original"),
    )
    key: str = dials.key()
    contexts: int = dials.contexts(20)
    steps: int = dials.steps(20)
    rate: float = dials.rate(0.5)
    momentum: float = dials.momentum()
    decay: float = dials.decay(0.5)
    limit: float = dials.limit(4.0)
    kl: float = dials.kl(0.0625)
    enough: float = dials.enough(0.05)
    covariance: bool = setting(True, "Steer clear of what the matrix usually stores (needs statistics)")

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """The one block that is edited: the setting, or a third of the way up."""
        return (len(handle.anatomy.blocks) // 3 if self.layer is None else self.layer,)

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """The edited site, unless its statistics are switched off."""
        return sites(self, handle) if self.covariance else ()

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """See `spread.cost`; the wide form solves for every token of its texts."""
        found = cost(self, handle, request)
        if self.form != "wide":
            return found
        texts = subject.sentences(handle, request.subject or "") if self.key == "subject" else []
        longest = len(handle.row_of(request).ids) + algebra.context_tokens(self.contexts)
        tokens = longest * (self.contexts + 1) + sum(len(row.ids) for row in texts)
        site = handle.anatomy.site(self.layers(handle)[0])
        return dataclasses.replace(found, state=found.state + WIDE * 8 * site.d_in * tokens)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One rank-one part per request.

        Raises:
            SubjectNotFound: a request has no subject, or it is not in its prompt.
            Diverged: the search or the update is not finite, or the original form divides by almost nothing.
            Cancelled: stopped between two steps.
        """
        handle = work.handle
        parts: list[LowRank] = []
        for request in requests:
            with handle.using([made_by(self, handle, parts, ())]):
                parts.append(self._part(work, request))
        # One part a module keeps a patch small to attach: columns side by side are the exact sum.
        merged = LowRank(parts[0].path, torch.cat([p.read for p in parts]), torch.cat([p.write for p in parts]))
        return made_by(self, handle, [merged], requests)

    def _part(self, work: Work, request: EditRequest) -> LowRank:
        handle, site = work.handle, work.handle.anatomy.site(self.layers(work.handle)[0])
        name = request.subject or ""
        rows = subject.prompts(handle, request, self.contexts)
        if rows[0].subject == 0:
            work.notes.append(
                "The subject is the first token of the prompt, where keys are unusual; the contexts soften this."
            )
        moment = statistics.moment(handle, site, work.home, work.report, work.stop) if self.covariance else None

        def listen(step: int, loss: float) -> None:
            work.report(Progress("edit", step, self.steps, loss, "searching for the new value"))
            work.check()

        wish = algebra.Wish(rows, subject.essence(handle, name, request.form))
        value = algebra.search_value(handle, site, wish, dials.search(self), listen)
        if value.clamped and value.loss > algebra.NOT_ENOUGH:
            work.notes.append("The new value reached its length limit; a higher limit may be needed.")
        bare_key = value.keys[0]
        if self.key == "subject":
            about = subject.keys(handle, site, subject.sentences(handle, name, request.form))
            key = torch.cat([bare_key[None], about]).mean(0)
            change = value.delta
        else:
            # v* - (W k + b), v* = v(bare) + delta: the module is affine, so its output at the mean is the mean.
            key, change = value.keys.mean(0), value.values[0] + value.delta - value.values.mean(0)
        solve = moment.solve if moment else (lambda columns: columns.double().reshape(len(columns), -1))
        direction = solve(key)[:, 0]
        if self.form == "wide":
            texts = [*rows, *(subject.sentences(handle, name, request.form) if self.key == "subject" else ())]
            read, write = algebra.fit_all(solve, *subject.every_key(handle, site, texts)), value.delta
        elif self.form == "r-rome":
            read, write = algebra.rank_one(direction, key, change)
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
