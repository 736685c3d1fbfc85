"""Where a model can be and in which number format, each choice with its reason. Knows no model and no file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from editcore.errors import ModelError, first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
DeviceMap = str | Mapping[str, str | int]


def choose_device(wanted: str | None = None) -> tuple[torch.device, str]:
    """A device and the reason for it.

    Raises:
        ModelError: the wanted device is not there.
    """
    if wanted:
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            raise ModelError(
                f"Device {wanted!r} was asked for.", "No CUDA device is usable on this machine.", "Use --device cpu."
            )
        try:
            device = torch.device(wanted)
        except RuntimeError as error:
            raise ModelError(f"Device {wanted!r} is unknown.", "", "Use cpu, cuda or cuda:0.") from error
        _check_device(device)
        return device, "asked for"
    if torch.cuda.is_available():
        return torch.device("cuda"), f"a GPU is present ({torch.cuda.get_device_name()})"
    return torch.device("cpu"), "no GPU was found"


def _check_device(device: torch.device) -> None:
    if device.type == "meta":
        raise ModelError("The device 'meta' holds no numbers.", "A real device was wanted.", "Use cpu, cuda or cuda:0.")
    try:
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ModelError(
            f"Device {str(device)!r} cannot be used here ({first_line(error)}).", "", "Use --device cpu."
        ) from error


def choose_dtype(device: torch.device, wanted: str | None = None) -> tuple[torch.dtype, str]:
    """A number format and the reason for it.

    Raises:
        ModelError: the name is unknown, or the device cannot compute in it.
    """
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted and wanted != "auto":
        if wanted not in DTYPES:
            raise ModelError(f"The number format {wanted!r} is unknown.", "", f"Use one of {', '.join(DTYPES)}.")
        kind = DTYPES[wanted]
        _check_arithmetic(device, kind)
        if kind == torch.float16:
            slow = ", and a processor is slow in it" if device.type == "cpu" else ""
            return kind, f"asked for; numbers above 65,504 overflow in it{slow}"
        if kind == torch.bfloat16 and device.type == "cuda" and not native:
            return kind, "asked for; this GPU only imitates it, which is slow"
        return kind, "asked for"
    if native:
        return torch.bfloat16, "half the memory, and the GPU computes in it natively"
    if device.type == "cuda":
        return torch.float32, "exact; this GPU does not compute in bfloat16"
    return torch.float32, "exact, and the fastest format on a CPU"


def _check_arithmetic(device: torch.device, kind: torch.dtype) -> None:
    """Raises ModelError when the device lacks what a model needs in that format: products, norms, a softmax."""
    try:
        x = torch.ones(2, 2, dtype=kind, device=device)
        torch.nn.functional.layer_norm(torch.nn.functional.silu(x @ x), (2,)).softmax(-1).sum().item()
    except (RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"This {device.type} cannot compute in {short(kind)} ({first_line(error)}).", "",
            "Use --dtype float32.",
        ) from error  # fmt: skip


def short(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


@contextmanager
def ready_attention(device: torch.device) -> Iterator[None]:
    """Attention by kernels that are there while the block runs: on a GPU by any but cuDNN's.

    That one is compiled for each shape when it is first met, and every prompt has another: on an H100 (torch 2.11) the
    first ROME edit of the Llama-3-8B shape took 4.5 s with it and 1.2 s without, later ones 0.65 s either way.
    """
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


def free_memory(device: torch.device, spread: bool = False) -> int:
    """Bytes that can be had on a device, what torch keeps there included; with `spread`, on all GPUs together."""
    if device.type == "cuda":
        every: Iterable[Any] = range(torch.cuda.device_count()) if spread else [device]
        kept = (torch.cuda.memory_reserved(one) - torch.cuda.memory_allocated(one) for one in every)
        return int(sum(torch.cuda.mem_get_info(one)[0] for one in every) + sum(kept))
    return int(psutil.virtual_memory().available)


def spread_over(wanted: DeviceMap | None, device: str | None) -> DeviceMap | None:
    """The device map, checked; None where there is none."""
    if wanted is None or wanted == "":
        return None
    if device:
        raise ModelError(f"Both a device ({device}) and a device map were given.", "", "Leave one of them out.")
    if isinstance(wanted, str) and wanted.lstrip().startswith("{"):
        try:
            wanted = dict(json.loads(wanted))
        except ValueError as error:
            raise ModelError(f"The device map cannot be read ({first_line(error)}).", "JSON was wanted.") from error
    if isinstance(wanted, str):
        if wanted not in DEVICE_MAPS:
            raise ModelError(f"The device map {wanted!r} is unknown.", "", f"Use one of {', '.join(DEVICE_MAPS)}.")
        return wanted
    for place in {str(p) if not isinstance(p, int) else f"cuda:{p}" for p in wanted.values()}:
        if place == "disk":
            raise _offloaded(["disk"])
        choose_device(place)
    if len({str(p) for p in wanted.values()}) > 1 and "cpu" in map(str, wanted.values()):
        raise _offloaded(["cpu"])
    return dict(wanted)


def _offloaded(places: Iterable[str]) -> ModelError:
    return ModelError(
        f"Part of the model would be offloaded ({', '.join(places)}).",
        "Offloaded weights are not in place when an edit looks at them: it would silently change nothing.",
        "Use more GPUs, --dtype bfloat16, or one device for all of it.",
    )
