"""Where the prompts stand in the pass a model is running, for edits that look at a prompt and decide.

Whoever runs a model over prompts says so with `reading`; a hook asks with `being_read`. In a pass nobody announced
(statistics, keys of a name) there is no prompt to recognise, and such edits are silent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class Prompts:
    """Rows of text a model reads now, in one pass or in a first one and more that each add a token."""

    tokens: Tensor  # [rows, tokens], bool: the prompt's own tokens in the first pass; the rest is answer or padding
    held: dict[object, Tensor] = field(default_factory=dict)  # who decided -> what, for the passes after the first
    elsewhere: dict[torch.device, Prompts] = field(default_factory=dict, repr=False)

    def at(self, device: torch.device) -> Prompts:
        """The same on another device, for a module that lies there; what was decided is shared."""
        if self.tokens.device == device:
            return self
        if device not in self.elsewhere:
            self.elsewhere[device] = Prompts(self.tokens.to(device), self.held, self.elsewhere)
        return self.elsewhere[device]

    @property
    def last(self) -> Tensor:
        """Index of each row's last prompt token, [rows]."""
        place = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (place * self.tokens).amax(1)


_now: ContextVar[Prompts | None] = ContextVar("prompts", default=None)


@contextmanager
def reading(tokens: Tensor) -> Iterator[None]:
    """While the block runs, the passes made are those of one batch whose prompt tokens are `tokens`."""
    token = _now.set(Prompts(tokens))
    try:
        yield
    finally:
        _now.reset(token)


@contextmanager
def unread() -> Iterator[None]:
    """While the block runs, nothing is said of its passes, whatever was said outside."""
    token = _now.set(None)
    try:
        yield
    finally:
        _now.reset(token)


def being_read() -> Prompts | None:
    """The prompts of the pass being run; None where nobody said."""
    return _now.get()
