"""Where products in bfloat16 pay in training."""

from __future__ import annotations

import torch


def pay(device: torch.device) -> bool:
    """True on a GPU, and on a CPU that multiplies bfloat16 itself; elsewhere it is imitated, and slower than fp32."""
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda"
