"""What stands in for a part of a model while the rest runs: for a block, and for the keys and values in front."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from editcore.handle import Handle
from editcore.trace import Stop


def cache_name(handle: Handle) -> str:
    """What a model calls the keys and values it is given; transformers changed the name in 5.24."""
    if "cache name" not in handle.memory:
        known = inspect.signature(type(handle.model).forward).parameters
        handle.memory["cache name"] = "cache" if "cache" in known else "past_key_values"
    return str(handle.memory["cache name"])


class Keys(DynamicCache):  # type: ignore[misc]
    """Keys and values of every position; a pass made for them ends where the last block has given its own."""

    def __init__(self, last: int | None, **how: Any) -> None:
        super().__init__(**how)
        self.last = last

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        found = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self.last:
            raise Stop
        return found


class Prefix(DynamicCache):  # type: ignore[misc]
    """Keys and values of the positions before the tail; hands them out and keeps nothing."""

    def __init__(self, kept: dict[int, tuple[Tensor, Tensor]], length: int) -> None:
        super().__init__()
        self.kept, self.length = kept, length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.kept[layer_idx]
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length


class Skip(nn.Module):
    """Stands in for a block that need not run: passes the hidden state on."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, value in vars(block).items():  # some models ask a block what kind of attention it wants
            if isinstance(value, str | int | float | bool) and not name.startswith("_") and name != "training":
                setattr(self, name, value)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden


class Note(Skip):
    """Notes what its block is given beside the state; the last one ends the pass."""

    def __init__(self, block: nn.Module, calls: list[tuple[Any, ...]], last: bool) -> None:
        super().__init__(block)
        self.kept = block, calls  # in a tuple: it is no part of this module
        self.last = last

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        named = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        block, calls = self.kept
        calls.append((block, args[1:], named))
        if self.last:
            raise Stop
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        return hidden


class Give(Skip):
    """Stands in for the last block, with a state of its own."""

    def __init__(self, hidden: Tensor, block: nn.Module) -> None:
        super().__init__(block)
        self.hidden = hidden

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.hidden
