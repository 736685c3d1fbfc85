"""FT + replay: fine-tuning beside text the model already knows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from editcore import corpus, descent, dials
from editcore.anatomy import Site
from editcore.handle import Handle
from editcore.method import Cost, Work, made_by, setting
from editcore.patch import Patch
from editcore.records import EditRequest


@dataclass(frozen=True)
class FTReplay:
    """Fine-tuning that replays running text and keeps what is said there.

        min_W  L(W) + w * mean over tokens x of replayed text of KL(p_0(. | x) || p_W(. | x))

    L: the loss of FT; w -> `weight`; the text -> `corpus.replayed`: the embedded model's own training text, for another
    model the text stored for it, else what it writes itself; the report says which. An encoder-decoder reads the first
    half of a stored text and says the second; what it writes itself are answers to general prompts. A sample of `rows`
    texts of `length` tokens is drawn once an edit. The rehearsal baseline of Sinitsin et al. 2020 (section 4).
    """

    name: ClassVar[str] = "ft-replay"
    title: ClassVar[str] = "FT + replay"
    sentence: ClassVar[str] = (
        "Fine-tunes one matrix on this one example while replaying training text, so that the rest stays as it was."
    )
    remedy: ClassVar[str] = "Try more steps or a lower weight of the replayed text."
    paper: ClassVar[str] = "Sinitsin et al. 2020, arXiv 2004.00345 (baseline)"
    needs: ClassVar[tuple[str, ...]] = ("corpus",)
    one_stack: ClassVar[str] = ""

    layer: int | None = dials.block()
    rate: float = dials.rate(5e-4, "Learning rate of Adam")
    steps: int = dials.steps(100, "Most passes over the example")
    enough: float = dials.enough(1e-2, "Stop once the loss on the example is this low")
    rows: int = setting(16, "Texts that are replayed in each pass", low=1, high=4096)
    length: int = setting(48, "Tokens of each replayed text", low=2, high=corpus.LENGTH)
    weight: float = setting(1.0, "Weight of keeping what is said in them", low=0.0, high=1e6)

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """The one block that is edited: the setting, or `descent.default_layer`."""
        return (descent.default_layer(handle) if self.layer is None else self.layer,)

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """None: descent reads no statistics."""
        return ()

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """See `descent.cost`."""
        site = handle.anatomy.site(self.layers(handle)[0])
        return descent.cost(handle, site, request, self.steps, self.rows, self.length)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One dense part for all requests together.

        Raises:
            BadRequest: the text stored for this model cannot be read any more.
            Diverged: the loss is not finite.
            Cancelled: stopped between two steps.
        """
        handle = work.handle
        texts, source = corpus.replayed(handle, self.rows, self.length, work.home, work.report, work.stop)
        chosen = random.Random(handle.seed).choices(texts, k=self.rows)
        work.notes.append(f"{self.rows} texts of up to {self.length} tokens were replayed: {source}.")
        site = handle.anatomy.site(self.layers(handle)[0])
        part = descent.tune_matrix(
            work,
            site,
            requests,
            descent.Dials(self.rate, self.steps, self.enough),
            replay=descent.Replay(chosen, self.weight),
        )
        return made_by(self, handle, [part], requests)
