"""Looking at activations, and nothing else: context managers that leave no hook behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Stop(Exception):
    """Raised inside a forward pass to end it once everything wanted has been seen."""


@contextmanager
def capture(modules: dict[str, nn.Module], *, inputs: bool = False, stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs (or first inputs) of `modules` under their names while the block runs.

    With `stop`, the forward pass ends after the last of them; the exception does not leave the block.
    """
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, module in modules.items():

        def keep(_m: nn.Module, args: Any, out: Any, name: str = name) -> None:
            value = args[0] if inputs else out
            seen[name] = value[0] if isinstance(value, tuple) else value
            if stop and len(seen) == len(modules):
                raise Stop

        hooks.append(module.register_forward_hook(keep))
    try:
        yield seen
    except Stop:
        pass
    finally:
        for hook in hooks:
            hook.remove()
