"""Where products in bfloat16 pay: in training, and when a model writes a text that only has to be likely."""

from __future__ import annotations

import copy
from typing import Any

import torch

from editcore.devices import free_memory

SPARE = 2.0  # what has to be free, in bytes of the copy


def pay(device: torch.device) -> bool:
    """True on a GPU, and on a CPU that multiplies bfloat16 itself; elsewhere it is imitated, and slower than fp32."""
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda"


def quick(model: Any, device: torch.device) -> Any:
    """The model, or a copy of it in bfloat16 where a CPU reads that faster and has room for it.

    For what is sampled: a token's probability is then right to a few parts in a thousand.
    """
    weights = dict.fromkeys(model.parameters())
    size = sum(2 * p.numel() for p in weights)
    wide = all(p.dtype == torch.float32 for p in weights)
    if device.type != "cpu" or not wide or not pay(device) or free_memory(device) < SPARE * size:
        return model
    known = {id(p): torch.nn.Parameter(p.detach().bfloat16(), requires_grad=False) for p in weights}
    return copy.deepcopy(model, known)
