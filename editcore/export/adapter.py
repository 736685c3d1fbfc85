"""A stack of edits as one PEFT LoRA adapter: written, loaded again by `peft`, compared, and only then there.

The files are written here and checked by what people will load them with, since an adapter with a wrong key loads
with a warning only and changes nothing. Of each edited module the adapter holds all parts side by side,

    lora_A = read [r, d_in],   lora_B = write^T [d_out, r],   lora_alpha = r,

strengths folded into lora_B, so that the scale is 1 and the rank is that of the edits together. Numbers are fp32.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from editcore.edit import percent
from editcore.errors import BadRequest, EditcoreError
from editcore.export import again
from editcore.export.card import Base, model_card
from editcore.export.exported import Exported
from editcore.export.forms import Change, changes, title, truncated
from editcore.export.stack import Edit, Kept, check_one_base, switched_on
from editcore.export.told import save_reports, write_json
from editcore.export.whole import weight, whole
from editcore.handle import Handle
from editcore.patch import Dense, LowRank, Patch
from editcore.records import EditReport, Progress

CONFIG, WEIGHTS, SIDE = "adapter_config.json", "adapter_model.safetensors", "editcore.json"
SIDE_FORMAT = 1
PREFIX = "base_model.model."
# Largest difference of a logit, over the largest logit. The sums are the same; only their order and casts differ.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
Reread = tuple[tuple[EditReport, ...], ...]  # for each edit its reports
VISIBLE = 0.5  # share of the edits' own effect that the difference may reach


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to one module: y += (x read^T) write."""

    read: Tensor  # [r, d_in], fp32
    write: Tensor  # [r, d_out], fp32
    lost: float = 0.0  # share of the norm of the change that it does not hold


def export_adapter(
    handle: Handle,
    edits: Sequence[Edit],
    folder: Path,
    dense_rank: int | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Exported:
    """Writes the stack as one adapter that gives the same logits through `peft`.

    Args:
        edits: each a patch and its report, its reports, or None.
        dense_rank: directions kept of a full change of a matrix; None refuses such an edit. A change of a bias has no
            place in an adapter and is left out then, too. What is lost is in the result and in the card.

    Raises:
        BadRequest: an edit has no adapter form (its method is named), or the folder is not empty.
        WrongModel, PatchError: an edit is for another model, or does not fit it.
        EditcoreError: `peft` gives other logits, or the disk refused; nothing is left behind.
    """
    kept, folder = switched_on(edits), Path(folder)
    check_one_base([patch for patch, _ in kept], handle.fingerprint, handle.name)
    with handle.using([]), torch.inference_mode(False):
        found = changes(handle, kept, "adapter")
        _check_low(kept, dense_rank)
        factors = {path: _factors(change, dense_rank) for path, change in found.items()}
        needed = sum(4 * (f.read.numel() + f.write.numel()) for f in factors.values())
        with whole(folder, needed) as made:
            report(Progress("export", 1, 4, text="writing the adapter"))
            made.mkdir()
            _write(made, handle, kept, factors)
            exported, attached = _verified(handle, kept, made, _Sum(factors, found), report)
            (made / "README.md").write_text(_card(handle, kept, exported, attached), encoding="utf-8")
            save_reports(made, [one for edit in exported.reports for one in edit])
    return replace(exported, folder=str(folder), bytes=weight(folder))


def _check_low(kept: Sequence[Kept], dense_rank: int | None) -> None:
    if dense_rank is not None and dense_rank < 1:
        raise BadRequest(f"The rank is {dense_rank}.", "At least 1 was wanted.")
    for patch, _ in kept:
        if dense_rank is None and any(isinstance(part, Dense) for part in patch.parts):
            raise BadRequest(
                f"An edit by {title(patch.method)} changes all directions of a matrix: no adapter holds it exactly.",
                "An edit of low rank was wanted.",
                "Give a rank to keep its main directions (the loss is measured), merge it, or export it as a patch.",
            )


def _factors(change: Change, rank: int | None) -> Factors:
    reads, writes, lost = list(change.reads), list(change.writes), 0.0
    if change.dense is not None and rank is not None:
        read, write, left = truncated(change.dense, rank)
        reads.append(read)
        writes.append(write)
        bias = 0.0 if change.bias is None else float(change.bias.norm())
        lost = math.hypot(left, bias) / (math.hypot(float(change.delta().norm()), bias) or 1.0)
    return Factors(torch.cat(reads), torch.cat(writes), lost)


def _write(folder: Path, handle: Handle, kept: Sequence[Kept], factors: Mapping[str, Factors]) -> None:
    tensors = {}
    for path, factor in factors.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = factor.read.cpu().contiguous()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = factor.write.T.cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, _config(handle, factors))
    heads = [
        {"method": patch.method, "settings": patch.settings, "requests": patch.requests, "strength": patch.strength}
        for patch, _ in kept
    ]
    base = Base.of(handle)
    side = {"format": SIDE_FORMAT, "model": base.name, "fingerprint": base.fingerprint, "edits": heads}
    write_json(folder / SIDE, side)


def _config(handle: Handle, factors: Mapping[str, Factors]) -> dict[str, Any]:
    ranks = {path: len(factor.read) for path, factor in factors.items()}
    rank, base = max(ranks.values()), Base.of(handle)
    others = {path: own for path, own in ranks.items() if own != rank}
    stored_in_by_out = any(isinstance(handle.model.get_submodule(path), Conv1D) for path in factors)
    return {
        "peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM" if handle.encoder_decoder else "CAUSAL_LM",
        "base_model_name_or_path": base.name, "revision": base.revision,
        "r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others, "lora_dropout": 0.0,
        "target_modules": list(factors), "fan_in_fan_out": stored_in_by_out, "bias": "none", "modules_to_save": None,
        "use_rslora": False, "use_dora": False, "layers_to_transform": None, "layers_pattern": None,
        "init_lora_weights": True, "inference_mode": True,
    }  # fmt: skip


def through_peft(handle: Handle, folder: Path) -> Handle:
    """A handle over the model as `peft` makes it from the adapter in `folder`; the shared model is left alone."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they would tell, the comparison of logits decides
        model = PeftModel.from_pretrained(again.twin(handle), str(folder), torch_device=str(handle.device))
    return again.over(handle, model.eval())


@dataclass(frozen=True)
class _Sum:
    """All edits together, per module: in the adapter, and as they are."""

    factors: Mapping[str, Factors]
    found: Mapping[str, Change]

    @property
    def dense(self) -> bool:
        return any(change.dense is not None for change in self.found.values())

    @property
    def biases(self) -> list[str]:
        return [path for path, change in self.found.items() if change.bias is not None]

    def patch(self, like: Patch) -> Patch:
        """What the adapter should do, as a patch."""
        parts = tuple(LowRank(path, factor.read, factor.write) for path, factor in self.factors.items())
        return replace(like, parts=parts, strength=1.0)

    def lost(self) -> tuple[tuple[str, float], ...]:
        return tuple((path, factor.lost) for path, factor in self.factors.items() if factor.lost)


def _verified(
    handle: Handle, kept: Sequence[Kept], folder: Path, summed: _Sum, report: Callable[[Progress], None]
) -> tuple[Exported, Reread]:
    """What was measured through `peft`, and the same probes with the patches attached."""
    report(Progress("export", 2, 4, text="loading it with peft"))
    asked, loaded = again.ask(handle, kept), through_peft(handle, folder)
    patches = [patch for patch, _ in kept]
    report(Progress("export", 3, 4, text="comparing the logits"))
    wanted = [summed.patch(patches[0])] if summed.dense else patches
    seen, usual = again.gap(handle, wanted, loaded, again.prompts(asked)), TOLERANCE[handle.dtype]
    tolerance = usual * max(1.0, seen.size)
    if not seen.difference <= min(tolerance, max(VISIBLE * seen.effect, usual)):
        raise EditcoreError(
            f"Loaded by peft, the adapter gives other logits: they differ by up to {seen.difference:.2g},"
            f" and the edits move them by {seen.effect:.2g}.",
            f"At most {tolerance:.2g}, and half of what the edits do, was wanted.",
            "Nothing was kept. Export the edits as a patch, or merged.",
        )
    report(Progress("export", 4, 4, text="reading every probe again"))
    exported = Exported(
        "peft", "", 0, again.answer(loaded, asked, ()), seen.difference, tolerance, seen.effect, summed.lost(),
        _notes(handle, summed),
    )  # fmt: skip
    return exported, again.answer(handle, asked, patches)


def _notes(handle: Handle, summed: _Sum) -> tuple[str, ...]:
    rank = max(len(factor.read) for factor in summed.factors.values())
    notes = [f"The rank is {rank}; a server that limits it (vLLM: max_lora_rank) has to allow as much."]
    if summed.dense:
        notes += [
            f"{path}: {percent(lost)} of the norm of the change is not in the adapter." for path, lost in summed.lost()
        ]
    if summed.biases:
        notes.append(
            f"The change of the bias of {', '.join(summed.biases)} has no place in an adapter: it is left out."
        )
    if any(isinstance(handle.model.get_submodule(path), Conv1D) for path in summed.factors):
        notes.append("The matrices are stored as inputs by outputs (Conv1D): fan_in_fan_out is true.")
    return tuple(notes)


USE = """from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained({base}{revision}){where}
model = PeftModel.from_pretrained(base, "path/to/this/folder")"""


def _card(handle: Handle, kept: Sequence[Kept], exported: Exported, attached: Reread) -> str:
    base = Base.of(handle)
    revision = f", revision={base.revision!r}" if base.revision else ""
    facts = [
        f"Loaded by peft, logits behind every probe prompt differ from those of the edits as editcore attaches them by"
        f" at most {exported.difference:.2g} (allowed: {exported.tolerance:.2g}); the edits move them by up to"
        f" {exported.effect:.2g}.",
        *exported.notes,
    ]
    return model_card(
        "peft", base, kept, [("attached patch", attached), ("this adapter", exported.reports)],
        USE.format(
            auto=handle.auto, base=repr(base.name), revision=revision, where="  # its folder" if handle.folder else ""
        ),
        "`model.disable_adapter()` for a while, `model.unload()` for good: the base weights are untouched.", facts,
    )  # fmt: skip
