"""LoRA adapters made elsewhere, as patches: checked to the last field and number before anything is touched.

What an adapter adds is y += scale * B A x; that is a low-rank part with read = A, write = scale * B^T. Whatever changes
more than that (DoRA, biases, saved modules, another start of the base weights) is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from editcore.anatomy import LINEAR
from editcore.errors import PatchError, WrongModel
from editcore.export.adapter import CONFIG, PREFIX, SIDE, SIDE_FORMAT, WEIGHTS
from editcore.export.stack import load_edits
from editcore.export.told import load_reports, read_json, typed
from editcore.handle import Handle
from editcore.patch import LowRank, Patch, attached
from editcore.records import EditReport, EditRequest

METHOD = "adapter"  # of a patch that no single method here made
# Fields that do not change what a finished adapter adds, whatever they hold, and fields with the values understood.
IDLE = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out", "layers_to_transform", "layers_pattern",
    "rank_pattern", "megatron_core", "loftq_config", "eva_config", "qalora_group_size", "runtime_config",
    "ensure_weight_tying",
})  # fmt: skip
READ = frozenset({"peft_type", "r", "lora_alpha", "alpha_pattern", "use_rslora"})
UNDERSTOOD: dict[str, tuple[Any, ...]] = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "eva")}
_KEY = re.compile(re.escape(PREFIX) + r"(?P<path>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_PLAIN = re.compile(r"[\w.]+")


def import_adapter(handle: Handle, folder: Path) -> Patch:
    """A PEFT LoRA adapter for the loaded model, as a patch of low-rank parts.

    Raises:
        WrongModel: it says it was made for a model with another fingerprint.
        PatchError: it is damaged, not finite, does not fit, or does more than a low-rank addition.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    _check_config(config)
    about = _about(handle, folder)
    factors = _pairs(_tensors(folder / WEIGHTS))
    parts = tuple(_part(handle, config, path, pair) for path, pair in factors.items())
    patch = Patch(parts, handle.name, handle.fingerprint, *about)
    patch.check_finite()
    with attached(handle.model, [patch]):
        pass  # what cannot be attached is refused now
    return patch


def import_edits(handle: Handle, folder: Path) -> tuple[tuple[Patch, tuple[EditReport, ...]], ...]:
    """Whatever was taken away: a patch, a stack of them, or an adapter; checked against the loaded model.

    Raises:
        WrongModel, PatchError: see `load_edits` and `import_adapter`.
    """
    folder = Path(folder)
    if (folder / CONFIG).is_file():
        return ((import_adapter(handle, folder), load_reports(folder)),)
    edits = load_edits(folder, handle.fingerprint, handle.device)
    with attached(handle.model, [patch for patch, _ in edits]):
        return edits


def _check_config(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise PatchError(f"The adapter is of type {config.get('peft_type')!r}.", "LORA was wanted.")
    odd = [
        name for name, value in config.items()
        if name not in IDLE | READ and (value not in UNDERSTOOD[name] if name in UNDERSTOOD else bool(value))
    ]  # fmt: skip
    if odd:
        said = ", ".join(f"{name} = {str(config[name])[:40]!r}" for name in sorted(odd))
        raise PatchError(
            f"The adapter does more than add a low-rank matrix: {said}.",
            "Plain LoRA, without biases, saved modules, DoRA and the like, was wanted.",
            "Merge it with peft and load the result as a model.",
        )
    for name in ("r", "lora_alpha"):
        if isinstance(config.get(name), bool) or not isinstance(config.get(name), int | float):
            raise PatchError(f"The adapter has the {name} {config.get(name)!r}.", "A number was wanted.")


def _about(handle: Handle, folder: Path) -> tuple[str, dict[str, Any], tuple[dict[str, Any], ...]]:
    """Method, settings and requests as our own side file tells them; little where there is none."""
    if not (folder / SIDE).exists():
        return METHOD, {}, ()
    side = read_json(folder / SIDE)
    if side.get("format") != SIDE_FORMAT:
        raise PatchError(f"{SIDE} has another format.", f"Format {SIDE_FORMAT} was wanted.")
    if side.get("fingerprint") != handle.fingerprint:
        raise WrongModel(
            f"This adapter was made for {side.get('model')} with fingerprint {side.get('fingerprint')}.",
            f"The loaded model has fingerprint {handle.fingerprint}.",
            "Load the model it was made for.",
        )
    try:
        heads = list(side["edits"])
        requests = tuple(request for head in heads for request in head["requests"])
        for request in requests:
            typed(EditRequest, request, "request")
        alone = heads[0] if len(heads) == 1 else {"method": METHOD, "settings": {}}
        return typed(str, alone["method"], "method"), typed(dict, alone["settings"], "settings"), requests
    except (KeyError, TypeError, ValueError) as error:
        raise PatchError(f"{SIDE} is damaged ({error}).", "", "Remove it, or export the adapter again.") from error


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise PatchError(
            f"{WEIGHTS} is damaged or missing ({type(error).__name__}).", "A whole safetensors file was wanted."
        ) from error


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Module path -> {"A": [r, d_in], "B": [d_out, r]}."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key = _KEY.fullmatch(name)
        if key is None:
            raise PatchError(
                f"The adapter holds {name[:120]!r}.",
                f"Only {PREFIX}<module>.lora_A.weight and lora_B.weight are known.",
            )
        found.setdefault(key["path"], {})[key["side"]] = tensor
    lonely = [path for path, pair in found.items() if len(pair) < 2]
    if lonely or not found:
        raise PatchError(f"The adapter has half a pair for {lonely[0]}." if lonely else "The adapter holds nothing.")
    return found


def _part(handle: Handle, config: Mapping[str, Any], path: str, pair: Mapping[str, Tensor]) -> LowRank:
    module = dict(handle.model.named_modules()).get(path)
    if not isinstance(module, LINEAR) or not isinstance(module, nn.Module):
        raise PatchError(
            f"The adapter changes {path!r}.", f"{type(handle.model).__name__} has no such linear map.",
            "Load the model it was made for.",
        )  # fmt: skip
    if not _targeted(path, config.get("target_modules")):
        raise PatchError(f"The adapter holds {path!r}, which its target_modules leave out.", "peft would ignore it.")
    for side, tensor in pair.items():
        if tensor.dim() != 2 or not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise PatchError(f"lora_{side} of {path} is no matrix of finite numbers.")
    a, b = pair["A"].float().to(handle.device), pair["B"].float().to(handle.device)
    rank = a.shape[0]
    wanted = _patterned(path, config.get("rank_pattern"), config["r"], "rank_pattern")
    if not rank == b.shape[1] == wanted:
        raise PatchError(
            f"{path} has lora_A of {list(a.shape)} and lora_B of {list(b.shape)}.", f"Rank {wanted} was wanted in both."
        )
    alpha = _patterned(path, config.get("alpha_pattern"), config["lora_alpha"], "alpha_pattern")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise PatchError(f"The scale of {path} is {scale}.", "A finite number was wanted.")
    return LowRank(path, a.contiguous(), (scale * b.T).contiguous())


def _targeted(path: str, targets: Any) -> bool:
    """False where a list of targets does not name the module; a pattern is not run: it is somebody else's."""
    if not isinstance(targets, list):
        return True
    return any(isinstance(t, str) and (path == t or path.endswith(f".{t}")) for t in targets)


def _patterned(path: str, pattern: Any, usual: float, name: str) -> float:
    """The value `peft` would take for a module: of the first key that its name ends with."""
    if pattern and not isinstance(pattern, dict):
        raise PatchError(f"{name} of the adapter is no table.")
    for key, value in (pattern or {}).items():
        plain = key.replace("\\.", ".").removeprefix("^").removesuffix("$")
        if not _PLAIN.fullmatch(plain) or isinstance(value, bool) or not isinstance(value, int | float):
            raise PatchError(
                f"{name} of the adapter holds {key[:80]!r}: {value!r}.", "Module names with numbers, please."
            )
        if path == plain or (path.endswith(f".{plain}") and not key.startswith("^")):
            return float(value)
    return float(usual)
