"""Fixed rows run again and again with one site changed, whatever the model: what a descent on that site needs.

A decoder alone is run by `resume.Upper`. An encoder-decoder is run whole, but for its encoder, which is read once where
the site is in the decoder: nothing the encoder gives depends on the edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from editcore.anatomy import Site
from editcore.handle import Handle
from editcore.layout import Layout, logits_at
from editcore.method import Pass
from editcore.resume import Change, Upper
from editcore.spans import Row


class Passes(Protocol):
    """Rows ready to be run with a changed output of one site."""

    @property
    def way(self) -> str:
        """How they are run: whole, from the first changed token on, or by calling the blocks directly."""
        ...

    def run(self, change: Change) -> Tensor:
        """Log-probabilities [reads, vocabulary] (fp32) with the site's output changed; differentiable in the change."""
        ...


def passes(handle: Handle, site: Site, rows: Sequence[Row], reads: Sequence[tuple[int, ...]]) -> Passes:
    """Passes over `rows`.

    Args:
        reads: per row, positions from its prompt's last one on whose next-token logits are wanted.
    """
    if handle.encoder_decoder:
        return _Apart(handle, site, tuple(rows), tuple(reads))
    return Upper(handle, site, tuple(row.ids for row in rows), (0,) * len(rows), tuple(reads))


def trials(handle: Handle, search: Pass) -> tuple[Pass, ...]:
    """What the first `Upper` whose shortened passes are like `search` reads to try them; none where that was done."""
    length, memory = search.before + search.tokens, handle.memory
    known = memory.get(("whole", search.first)) or memory.get(("proven", search.first, search.before > 0), 0) >= length
    if known or handle.encoder_decoder:
        return ()
    return Pass(search.rows, length, 0, None, search.reads), replace(search, times=3, backward=False)


@dataclass(eq=False)
class _Apart:
    handle: Handle
    site: Site
    rows: tuple[Row, ...]
    reads: tuple[tuple[int, ...], ...]
    kept: bool = True  # what the encoder says is read once where the edit cannot change it
    _layout: Layout = field(init=False)
    _encoded: Any = field(init=False, default=None)

    @torch.no_grad()
    def __post_init__(self) -> None:
        self._layout = self.handle.layout(self.rows)
        at = [(i, p) for i, wanted in enumerate(self.reads) for p in wanted]
        self._line, position = (torch.tensor([pair[j] for pair in at], device=self.handle.device) for j in (0, 1))
        self._place = position + self._layout.shift[self._line]
        if self.kept and not self.site.encoder:
            encoder = self.handle.model.get_encoder()
            self._encoded = encoder(input_ids=self._layout.ids, attention_mask=self._layout.mask)

    @property
    def way(self) -> str:
        """Decoder and encoder, or the decoder alone."""
        return "both stacks" if self._encoded is None else "one stack"

    def run(self, change: Change) -> Tensor:
        def replace(_m: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return change(args[0], out)

        hook = self.site.module.register_forward_hook(replace)
        try:
            logits = logits_at(self.handle.model, self._layout, self._line, self._place, self._encoded)
        finally:
            hook.remove()
        return torch.log_softmax(logits.float(), -1)
