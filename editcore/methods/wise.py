"""WISE: a second copy of one matrix, and a gate that sends related prompts through it (Wang et al. 2024)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from editcore import algebra, corpus, dials, subject
from editcore.anatomy import Site
from editcore.errors import Diverged
from editcore.handle import Handle
from editcore.memory import Side, asked, excitement
from editcore.method import Cost, Pass, Work, made_by, setting
from editcore.passes import trials
from editcore.patch import Patch
from editcore.records import EditRequest, Progress
from editcore.resume import Upper, reads_of
from editcore.spans import Row
from editcore.steps import Steps
from editcore.trace import capture

OTHER_TOKENS = 12  # of an unrelated text: as long as a short question


@dataclass(frozen=True)
class WISE:
    """A side copy W' = W + delta of one matrix answers the prompts that excite it; all others read through W.

        D(x) = mean_t ||delta x_t||,   y = W' x  if  D(x) >= ratio * min_i D(x_i)  else  W x    (Wang et al. 2024, 3)
        min_delta  L + mean [ (D_out - D_in + gamma)+  +  (D_out - alpha)+  +  (beta - D_in)+ ]

    L: loss of the new answers behind each context; D_in: of the edited prompts; D_out: of unrelated texts, from the
    text there is for the model -> `corpus`. Only a random share of delta's entries moves, by plain gradient descent,
    each at most `limit` from zero. D is read on the prompt alone, once, and holds for the answer -> `memory.Gate`.
    One edit has one side copy with its own gate; several stay apart, and the one a prompt excites most answers.
    """

    name: ClassVar[str] = "wise"
    title: ClassVar[str] = "WISE"
    sentence: ClassVar[str] = (
        "Trains a side copy of one matrix and sends only related prompts through it: the matrix itself stays."
    )
    remedy: ClassVar[str] = "Try more steps, a higher learning rate or another block."
    paper: ClassVar[str] = "Wang et al. 2024, arXiv 2405.14768"
    needs: ClassVar[tuple[str, ...]] = ()
    one_stack: ClassVar[str] = (
        "It decides by a prompt's tokens in the very matrix that the answer goes through; in an encoder-decoder none"
        " sees both."
    )

    layer: int | None = dials.block()
    share: float = setting(0.2, "Share of the side copy's entries that may differ, drawn at random", low=1e-4, high=1.0)
    seed: int = setting(0, "Which entries are drawn", low=0, high=2**31)
    rate: float = dials.rate(1.0, "Learning rate of plain gradient descent")
    steps: int = dials.steps(70, "Most passes over the example")
    enough: float = dials.enough(0.02, "Stop at this loss, once the margins hold")
    decay: float = setting(1e-5, "Pull of the side copy towards the matrix", low=0.0, high=1.0)
    limit: float = setting(1.0, "Largest change of one entry", low=1e-9, high=1e6)
    contexts: int = dials.contexts(10)
    others: int = setting(1, "Unrelated texts that are not to excite the side copy", low=1, high=1000)
    alpha: float = setting(5.0, "Most an unrelated text may excite it", low=0.0, high=1e6)
    beta: float = setting(20.0, "Least an edited prompt is to excite it", low=0.0, high=1e6)
    gamma: float = setting(10.0, "Least difference between the two", low=0.0, high=1e6)
    relative: bool = setting(False, "Read these three in lengths of the matrix's output")
    window: int = setting(
        0, "How many of a prompt's last tokens are asked whether it excites the side copy; 0: all", low=0, high=1000
    )
    ratio: float = setting(
        0.88, "Share of the edited prompt's excitement another needs to go through", low=0.0, high=1.0
    )

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """The one block with a side copy: the setting, or three quarters of the way up."""
        return (3 * len(handle.anatomy.blocks) // 4 if self.layer is None else self.layer,)

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """None: no statistics are read."""
        return ()

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """Places and values that differ; descent holds them, their gradient and the full change."""
        site = handle.anatomy.site(self.layers(handle)[0])
        row, size, rows = handle.row_of(request), site.d_in * site.d_out, self.contexts + 1
        drawn, tokens = max(1, round(self.share * size)), len(row.ids) + algebra.context_tokens(self.contexts)
        first = site.layer + handle.anatomy.additive[site.layer]
        search = Pass(rows, tokens, first, None, rows * len(row.answer), self.steps, backward=True, played=True)
        passes = Pass(rows, tokens, 0, site.layer), Pass(self.others, OTHER_TOKENS, 0, site.layer), search
        once = (*algebra.sampling(handle, self.contexts), *trials(handle, search))
        text = corpus.missing(handle, OTHER_TOKENS * self.others)
        state = 8 * (size + drawn) + 4 * (2 * size + 4 * drawn)  # places in order, the change and its gradient, values
        return Cost(8 * drawn + 12, state, passes, self.steps * 12 * size, once, text)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One side copy for all requests.

        Raises:
            Diverged: the loss is not finite.
            Cancelled: stopped between two steps.
        """
        handle = work.handle
        site = handle.anatomy.site(self.layers(handle)[0])
        with handle.using([]):
            groups = [subject.in_text(handle, request, self.contexts) for request in requests]
            rows = [row for group in groups for row in group]
            zeros = (0,) * len(rows)
            upper = Upper(handle, site, tuple(r.ids for r in rows), zeros, tuple(reads_of(r) for r in rows))
            far, far_tokens = self._others(work, site)
            values, index = self._learn(work, site, upper, rows, far, far_tokens)
        part = Side(site.path, index, values, values.new_zeros(1), torch.tensor([self.window], device=site.device))
        bare = [sum(map(len, groups[:i])) for i in range(len(groups))]
        prompts = asked(_prompt_tokens(upper, rows), self.window)
        found = excitement(upper.x, part.delta(site.d_in, site.d_out), prompts)
        return made_by(self, handle, [replace(part, threshold=self.ratio * found[bare].min()[None])], requests)

    def _others(self, work: Work, site: Site) -> tuple[Tensor, Tensor]:
        """The site's inputs at unrelated texts [rows, tokens, d_in], and which tokens are real [rows, tokens]."""
        handle = work.handle
        texts, _ = corpus.kept(handle, OTHER_TOKENS * self.others, work.home, work.report, work.stop)
        work.check()
        pieces = [(text, i) for text in texts for i in range(0, len(text), OTHER_TOKENS)]
        chosen = random.Random(self.seed).sample(pieces, min(self.others, len(pieces)))
        ids, mask = handle.batch([text[i : i + OTHER_TOKENS] for text, i in chosen])
        with torch.no_grad(), capture({"x": site.module}, inputs=True, stop=True) as seen:
            handle.model(input_ids=ids, attention_mask=mask, use_cache=False)
        return seen["x"].reshape(*ids.shape, -1), mask.bool().to(site.device)

    def _learn(
        self, work: Work, site: Site, upper: Upper, rows: Sequence[Row], far: Tensor, far_tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What differs in the side copy [k], fp32, and where in the flattened matrix [k], int32."""
        device, size = site.device, site.d_in * site.d_out
        index = self._drawn(work.handle, site)
        values = torch.zeros(len(index), device=device, requires_grad=True)
        optimiser = torch.optim.SGD([values], lr=self.rate, weight_decay=self.decay)
        near_tokens, answers = _prompt_tokens(upper, rows), algebra.Answers(rows, device)
        unit = float((upper.y.float().norm(dim=-1) * near_tokens).sum() / near_tokens.sum()) if self.relative else 1.0
        alpha, beta, gamma = (unit * bound for bound in (self.alpha, self.beta, self.gamma))
        near_asked, far_asked = asked(near_tokens, self.window), asked(far_tokens, self.window)

        def look() -> tuple[Tensor, Tensor]:
            delta = torch.zeros(size, device=device).index_put((index,), values).reshape(site.d_out, site.d_in)
            out = upper.run(lambda x, y: (y.float() + x.float() @ delta.T).to(y.dtype))
            answer = answers.losses(out).mean()
            inside = excitement(upper.x, delta, near_asked)
            outside = excitement(far, delta, far_asked)
            margins = (outside - alpha).relu().mean() + (beta - inside).relu().mean()
            margins = margins + (outside - inside[:, None] + gamma).relu().mean()
            margins = margins.to(answer.device)
            return torch.stack([answer, margins]), answer + margins

        training = Steps(work.handle, look, optimiser, lambda: values.clamp_(-self.limit, self.limit), upper.way)
        for step in range(self.steps):
            reached, apart = training.look().tolist()
            work.report(Progress("edit", step + 1, self.steps, reached, "training the side copy"))
            work.check()
            if not math.isfinite(reached + apart):
                raise Diverged(
                    f"The side copy diverged at step {step + 1}.", "Nothing was kept.", "Lower the learning rate."
                )
            if (reached < self.enough and apart <= 0) or step == self.steps - 1:
                break
            training.move()
        return values.detach(), index.int()

    def _drawn(self, handle: Handle, site: Site) -> Tensor:
        """Which entries of the flattened matrix may differ, in rising order [k]; drawn once for a model."""
        size = site.d_in * site.d_out
        count = max(1, round(self.share * size))
        key = ("drawn", size, count, self.seed)
        if key not in handle.memory:
            drawn = torch.randperm(size, generator=torch.Generator().manual_seed(handle.seed + self.seed))[:count]
            handle.memory[key] = drawn.int().to(site.device).sort().values
        found: Tensor = handle.memory[key]
        return found.to(site.device).long()


def _prompt_tokens(upper: Upper, rows: Sequence[Row]) -> Tensor:
    """Which tokens of each row belong to its prompt, [rows, tokens]."""
    starts = torch.tensor([row.start for row in rows], device=upper.x.device)
    return torch.arange(upper.x.shape[1], device=upper.x.device) < starts[:, None]
