"""A stack of edits inside the weights: a checkpoint anybody can load, read again from the disk before it is offered.

The shared model is not written: the sum goes into matrices of a twin that shares every other number with it,

    W' = round(W + sum of strength * delta),

computed in fp32 and rounded once. In half precision a small delta does not survive the rounding as it is; how much of
it is lost, and what that does to every probe, is measured on the files themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editcore.devices import DTYPES
from editcore.edit import percent
from editcore.errors import BadRequest, EditcoreError, ModelError
from editcore.export import again
from editcore.export.card import Base, model_card
from editcore.export.exported import Exported
from editcore.export.forms import Change, changes
from editcore.export.stack import Edit, Kept, check_one_base, switched_on
from editcore.export.told import save_reports, write_json
from editcore.export.whole import weight, whole
from editcore.handle import Handle
from editcore.opening import load
from editcore.records import EditReport, Progress

SIDE = "editcore.json"
SHARD = "5GB"
ROOM = 1.3  # times the weights: what a second model takes while it is read


def export_merged(
    handle: Handle,
    edits: Sequence[Edit],
    folder: Path,
    dtype: str | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Exported:
    """Writes the edited model: weights (safetensors), configuration, tokenizer, generation settings, card, reports.

    Args:
        edits: each a patch and its report, its reports, or None.
        dtype: number format of the files, "float32", "bfloat16" or "float16"; None: that of the loaded model.

    Returns:
        `reports` read from the written files; `difference` of their logits from the attached patches; `lost`, the
        share of each change's norm that rounding took or added.

    Raises:
        BadRequest: an edit has no merged form (its method is named), or the folder is not empty.
        WrongModel, PatchError: an edit is for another model, or does not fit it.
        EditcoreError: the written files do not load, or the disk refused; nothing is left behind.
    """
    kept, folder, kind = switched_on(edits), Path(folder), _dtype(handle, dtype)
    check_one_base([patch for patch, _ in kept], handle.fingerprint, handle.name)
    with handle.using([]), torch.inference_mode(False), torch.no_grad():
        found = changes(handle, kept, "merged")
        needed = sum(p.numel() for p in handle.model.parameters()) * kind.itemsize
        with whole(folder, needed) as made:
            report(Progress("export", 1, 3, text="adding the edits to a copy of the weights they change"))
            twin, lost = _merged(handle, found, kind)
            report(Progress("export", 2, 3, text="writing the model"))
            _write(made, twin, handle, kept)
            del twin
            report(Progress("export", 3, 3, text="loading it and reading every probe again"))
            exported, attached = _measured(handle, kept, made, kind, lost)
            (made / "README.md").write_text(_card(handle, kept, exported, attached, kind), encoding="utf-8")
            save_reports(made, [one for edit in exported.reports for one in edit])
    return replace(exported, folder=str(folder), bytes=weight(folder))


def _dtype(handle: Handle, name: str | None) -> torch.dtype:
    if name is None:
        return handle.dtype
    if name not in DTYPES:
        raise BadRequest(f"The number format {name!r} is unknown.", "", f"Use one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def _merged(handle: Handle, found: Mapping[str, Change], kind: torch.dtype) -> tuple[Any, dict[str, float]]:
    """A twin with the sums in place, and per module the share of the change's norm that rounding took."""
    for path in found:
        _check_mergeable(handle.model, path, found[path])
    twin, lost = again.twin(handle), {}
    if kind != handle.dtype:
        for parameter in twin.parameters():  # one that stands for two stays one
            parameter.data = parameter.data.to(kind) if parameter.dtype == handle.dtype else parameter.data
    for path, change in found.items():
        module, own = twin.get_submodule(path), handle.model.get_submodule(path)
        delta = change.delta()
        if isinstance(module, Conv1D):
            delta = delta.T
        module.weight, missing = _sum(own.weight, delta, module.weight.dtype)
        wanted = delta.norm() ** 2
        if change.bias is not None:
            module.bias, more = _sum(own.bias, change.bias, module.bias.dtype)
            missing, wanted = missing + more, wanted + change.bias.norm() ** 2
        lost[path] = float((missing / wanted).sqrt()) if wanted else 0.0
    return twin, lost


def _sum(value: Tensor, delta: Tensor, kind: torch.dtype) -> tuple[nn.Parameter, Tensor]:
    """The rounded sum, and the squared norm of the difference between the change wanted and the change made.

    The change made is counted from the unedited weight in the same number format: what rounding does to both is no
    part of the edit.
    """
    delta = delta.to(value.device)
    made = (value.float() + delta).to(kind)
    missing = (made.float() - value.to(kind).float() - delta).norm() ** 2
    return nn.Parameter(made.contiguous(), requires_grad=False), missing


def _check_mergeable(model: Any, path: str, change: Change) -> None:
    module = model.get_submodule(path)
    shared = [name for name, p in model.named_parameters(remove_duplicate=False) if p is module.weight]
    if len(shared) > 1:
        raise BadRequest(
            f"The matrix of {path} is shared: {', '.join(shared)}.",
            "Merged, the edit would change all of these.",
            "Export it as a patch or as an adapter.",
        )
    if change.bias is not None and module.bias is None:
        raise BadRequest(
            f"The edit adds a bias to {path}, which has none.", "", "Export it as a patch; a checkpoint cannot hold it."
        )


def _write(folder: Path, twin: Any, handle: Handle, kept: Sequence[Kept]) -> None:
    try:
        twin.save_pretrained(folder, max_shard_size=SHARD)
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"The model could not be saved ({str(error).splitlines()[0][:200]}).", "Nothing was written.",
            "Export the edits as a patch or as an adapter.",
        ) from error  # fmt: skip
    handle.tokenizer.save_pretrained(folder)
    base = Base.of(handle)
    heads = [
        {"method": patch.method, "settings": patch.settings, "requests": patch.requests, "strength": patch.strength}
        for patch, _ in kept
    ]
    write_json(folder / SIDE, {"format": 1, "model": base.name, "fingerprint": base.fingerprint, "edits": heads})


def _measured(
    handle: Handle, kept: Sequence[Kept], folder: Path, kind: torch.dtype, lost: Mapping[str, float]
) -> tuple[Exported, tuple[tuple[EditReport, ...], ...]]:
    """What the written files answer, and what the attached patches do."""
    asked, patches = again.ask(handle, kept), [patch for patch, _ in kept]
    try:
        device = _device(handle)
        loaded = load(str(folder), device=device, dtype=_name(_arithmetic(kind, device)))
    except EditcoreError as error:
        raise EditcoreError(f"The merged model was written but does not load: {error}", "Nothing was kept.") from error
    seen = again.gap(handle, patches, loaded, again.prompts(asked))
    reports = again.answer(loaded, asked, ())
    notes = _notes(lost, kind)
    if loaded.dtype != kind:
        notes += (f"Read with {_name(loaded.dtype)} arithmetic over the {_name(kind)} weights.",)
    exported = Exported("merged", "", 0, reports, seen.difference, None, seen.effect, tuple(lost.items()), notes)
    return exported, again.answer(handle, asked, patches)


def _device(handle: Handle) -> str:
    """Where there is room for a second model: beside the first, else in main memory."""
    if handle.device.type != "cuda":
        return str(handle.device)
    size = sum(p.numel() * p.element_size() for p in handle.model.parameters())
    free, _ = torch.cuda.mem_get_info(handle.device)
    return str(handle.device) if free > ROOM * size else "cpu"


def _arithmetic(kind: torch.dtype, device: str) -> torch.dtype:
    """What the files are read in: their own format, but for float16 on a processor, which is ten times slower there."""
    return torch.float32 if kind == torch.float16 and device == "cpu" else kind


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _notes(lost: Mapping[str, float], kind: torch.dtype) -> tuple[str, ...]:
    return tuple(f"{path}: rounding to {_name(kind)} distorts the change by {percent(share)} of its norm."
                 for path, share in lost.items())  # fmt: skip


USE = """from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("path/to/this/folder", dtype="{dtype}")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")"""


def _card(
    handle: Handle, kept: Sequence[Kept], exported: Exported, attached: tuple[tuple[EditReport, ...], ...],
    kind: torch.dtype,
) -> str:  # fmt: skip
    base, name = Base.of(handle), _name(kind)
    facts = [
        f"Read from these {name} files, logits behind every probe prompt differ from those of the edits attached"
        f" to the base in {base.dtype} by up to {exported.difference:.2g}; the edits move them by up to"
        f" {exported.effect:.2g}.",
        *exported.notes,
    ]
    return model_card(
        "merged", base, kept, [(f"attached patch, {base.dtype}", attached), (f"these files, {name}", exported.reports)],
        USE.format(auto=handle.auto, dtype=name),
        "load the base model instead; subtracting the change again does not give the old weights back.", facts,
    )  # fmt: skip
