"""From a name to a handle: a model found, read, checked and studied. Knows no method and no page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from editcore import checkpoint, weights
from editcore.anatomy import computes, stacks, study, two_stacks
from editcore.assets import WORLD_NAME
from editcore.devices import DeviceMap, choose_device, choose_dtype, spread_over
from editcore.errors import ModelError
from editcore.handle import Handle
from editcore.layout import closing, opening
from editcore.loading import Loaded, told


def load(
    name: str | Path = WORLD_NAME,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    device_map: DeviceMap | None = None,
    listen: Callable[[Loaded], None] = lambda loaded: None,
) -> Handle:
    """Loads a model by the embedded model's name, a local folder, or a hub id.

    Args:
        device: "cpu", "cuda", "cuda:0" ...; None: a GPU where there is one.
        dtype: "float32", "bfloat16" or "float16"; None or "auto": what suits the device.
        revision: branch, tag or commit of a hub id.
        device_map: instead of a device: spread over several, "auto", "balanced", "balanced_low_0", "sequential" or a
            device per module.
        listen: hears how much of the weights has been read.

    Raises:
        ModelError: it cannot be found, read or safely edited; the message says what to do.
    """
    name = name if isinstance(name, str) else str(name.expanduser().absolute())
    spread = spread_over(device_map, device)
    chosen, why_device = choose_device(device)
    kind, why_dtype = choose_dtype(chosen, dtype)
    found = checkpoint.find(name, revision)
    maker = weights.auto_class(found)
    weights.check_room(found, kind, chosen, spread is not None)
    with told(str(found.files), None, listen):
        tokenizer, model = weights.read(maker, found, kind, spread)
    if found.folder is None:
        model.config._name_or_path = name
    if spread is not None:
        why_device = f"spread as {device_map!r} says" if isinstance(device_map, str) else "spread as asked for"
        chosen = model.get_input_embeddings().weight.device
    return wrap(model, tokenizer, name, chosen, why_device, kind, why_dtype, found.folder, found.revision)


def look(
    name: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    device_map: DeviceMap | None = None,
    returned: Callable[[torch.device], int] = lambda device: 0,
) -> None:
    """What `load` would refuse before it reads a weight, refused now.

    Of a model that is only on the hub, nothing but small files is fetched.

    Args:
        returned: bytes that will be free on a device besides, because another model goes first.

    Raises:
        ModelError: as `load` does.
    """
    spread = spread_over(device_map, device)
    chosen, _ = choose_device(device)
    kind, _ = choose_dtype(chosen, dtype)
    try:
        found = checkpoint.find(name, revision, checkpoint.fetch_small)
    except checkpoint.NotFetched:
        return
    maker = weights.auto_class(found)
    weights.check_room(found, kind, chosen, spread is not None, returned(chosen))
    tokenizer, model = weights.rehearse(maker, found)
    weights.check_tokenizer(tokenizer, model, name)
    stacks(model)


def wrap(
    model: Any,
    tokenizer: Any,
    name: str,
    device: torch.device | None = None,
    device_reason: str = "where it was",
    dtype: torch.dtype | None = None,
    dtype_reason: str = "as it was",
    folder: Path | None = None,
    revision: str = "",
) -> Handle:
    """A handle over a model that is already in memory; checks tokenizer and structure.

    Raises:
        ModelError: the tokenizer does not fit, or the structure cannot be proved.
    """
    apart = two_stacks(model)
    if away := [path for path, parameter in model.named_parameters() if parameter.is_meta]:
        raise ModelError(
            f"{len(away)} weights of {name!r} are not in memory (offloaded), the first is {away[0]}.",
            "An edit there would silently change nothing.",
            "Load the model without CPU or disk offload.",
        )
    weights.check_tokenizer(tokenizer, model, name)
    device = device or model.get_input_embeddings().weight.device
    if len({parameter.device for parameter in model.parameters()}) == 1:
        model = model.to(device)
    model = model.eval().requires_grad_(False)
    found = study(model)
    if not computes(model):
        raise ModelError(
            f"{name!r} computes no numbers: what it makes of four tokens is not finite.",
            "Weights without NaN or infinity were wanted, in a number format that does not overflow.",
            "Download or copy the model again; if it was opened in float16, use bfloat16 or float32.",
        )
    return Handle(
        name=name,
        model=model,
        tokenizer=tokenizer,
        device=device,
        device_reason=device_reason,
        dtype=dtype or next(model.parameters()).dtype,
        dtype_reason=dtype_reason,
        fingerprint=fingerprint(model),
        anatomy=found,
        folder=folder,
        revision=revision,
        opening=opening(model, tokenizer) if apart else (),
        closing=closing(tokenizer) if apart else (),
    )


def fingerprint(model: Any) -> str:
    """A short hash of the weights: names, shapes and up to 1,024 spread values of each parameter.

    Values are rounded to bfloat16 first, so the same checkpoint loaded in another precision has the same fingerprint.
    """
    digest = hashlib.sha256()
    for path, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        stride = max(1, flat.numel() // 1024)
        sample = flat[::stride][:1024].to(torch.bfloat16).float().cpu().numpy()
        digest.update(f"{path}{tuple(parameter.shape)}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()[:16]
