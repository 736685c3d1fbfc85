"""Patches in their own format, one or a stack, with their reports. Loads back on the same base.

One edit: patch.json, patch.safetensors, report.json. Several: stack.json, and a folder of that kind for each, 001 at
the bottom. An edit that is switched off (strength 0) stays behind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from editcore.errors import BadRequest, PatchError, WrongModel
from editcore.export.exported import Exported
from editcore.export.told import load_reports, read_json, save_reports, write_json
from editcore.export.whole import weight, whole
from editcore.patch import Patch, load_patch
from editcore.records import EditReport

FORMAT = 1
FILE = "stack.json"
MOST = 10_000  # edits in a stack
_NAME = re.compile(r"[0-9]{3,5}")

Reports = EditReport | Sequence[EditReport] | None
Edit = tuple[Patch, Reports]  # as `run_edit` and `run_edits` return it
Kept = tuple[Patch, tuple[EditReport, ...]]


def switched_on(edits: Sequence[Edit]) -> tuple[Kept, ...]:
    """The edits that count, each with a tuple of reports.

    Raises:
        BadRequest: none counts.
        WrongModel: they are of different models.
    """
    kept = tuple((patch, _tuple(reports)) for patch, reports in edits if patch.strength != 0.0)
    if not kept:
        raise BadRequest("There is no edit to export.", "At least one that is switched on was wanted.", "Make an edit.")
    check_one_base([patch for patch, _ in kept], kept[0][0].fingerprint, kept[0][0].model)
    return kept


def check_one_base(patches: Sequence[Patch], fingerprint: str, name: str) -> None:
    """Raises WrongModel when a patch was made for another model than the named one; both fingerprints are said."""
    for patch in patches:
        if patch.fingerprint != fingerprint:
            raise WrongModel(
                f"An edit was made for {patch.model} with fingerprint {patch.fingerprint}.",
                f"{name} has fingerprint {fingerprint}.",
                "Use edits of one model, with that model.",
            )


def export_patch(edits: Sequence[Edit], folder: Path) -> Exported:
    """Writes one edit, or a stack with the last on top, into a new folder.

    Args:
        edits: each a patch and its report, its reports, or None. A patch carries its own strength.

    Raises:
        BadRequest: no edit counts, or the folder is not empty.
        WrongModel: the edits are of different models.
        EditcoreError: the disk refused; nothing is left behind.
    """
    kept, folder = switched_on(edits), Path(folder)
    with whole(folder, sum(patch.bytes for patch, _ in kept)) as made:
        if len(kept) == 1:
            _save(kept[0], made)
        else:
            names = [f"{number:03}" for number in range(1, len(kept) + 1)]
            made.mkdir()
            for name, edit in zip(names, kept, strict=True):
                _save(edit, made / name)
            first = kept[0][0]
            head = {"format": FORMAT, "model": first.model, "fingerprint": first.fingerprint, "edits": names}
            write_json(made / FILE, head)
    return Exported("patch", str(folder), weight(folder), tuple(reports for _, reports in kept))


def load_edits(
    folder: Path, fingerprint: str | None = None, device: torch.device | None = None
) -> tuple[tuple[Patch, tuple[EditReport, ...]], ...]:
    """The edits in a folder written by `export_patch` or `Patch.save`, the last on top; no report where none was kept.

    Args:
        fingerprint: of the model they are for; None only asks that they are of one model.

    Raises:
        PatchError: the folder is no such thing, or something in it is damaged, not finite, or points elsewhere.
        WrongModel: the fingerprints differ.
    """
    folder = Path(folder)
    if (folder / FILE).is_file():
        folders = [_inner(folder, name) for name in _names(folder)]
    elif (folder / "adapter_config.json").is_file():
        raise PatchError(f"{folder.name!r} holds a LoRA adapter.", "A patch was wanted.", "Import it as an adapter.")
    else:
        folders = [folder]
    edits = tuple((_load(path, fingerprint, device), load_reports(path)) for path in folders)
    check_one_base([patch for patch, _ in edits], edits[0][0].fingerprint, edits[0][0].model)
    return edits


def _save(edit: Kept, folder: Path) -> None:
    edit[0].save(folder)
    save_reports(folder, edit[1])


def _load(folder: Path, fingerprint: str | None, device: torch.device | None) -> Patch:
    patch = load_patch(folder, fingerprint, device)
    strength = patch.strength
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        raise PatchError(f"The patch in {folder.name!r} has the strength {strength!r}.", "A finite number was wanted.")
    texts = (patch.model, patch.method, *(part.path for part in patch.parts))
    plain = all(isinstance(request, dict) for request in patch.requests) and isinstance(patch.settings, dict)
    if not plain or not all(isinstance(text, str) for text in texts):
        raise PatchError(f"The patch in {folder.name!r} is damaged: a field has another type.", "", "Save it again.")
    return patch


def _names(folder: Path) -> list[str]:
    head = read_json(folder / FILE)
    names = head.get("edits")
    if head.get("format") != FORMAT or not isinstance(names, list) or not 1 <= len(names) <= MOST:
        raise PatchError(
            f"{FILE} in {folder.name!r} has another format.", f"Format {FORMAT} with a list of edits was wanted."
        )
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names) or len(set(names)) < len(names):
        raise PatchError(
            f"{FILE} in {folder.name!r} names folders that are none of its own: {str(names)[:80]}.",
            "Different names of three to five digits were wanted.",
        )
    return names


def _inner(folder: Path, name: str) -> Path:
    path = folder / name
    inside = [path, *(path / file for file in ("patch.json", "patch.safetensors", "report.json"))]
    if any(piece.is_symlink() for piece in inside):
        raise PatchError(f"{name} in {folder.name!r} is a link.", "A folder of files was wanted.", "Export it again.")
    return path


def _tuple(reports: Reports) -> tuple[EditReport, ...]:
    if reports is None:
        return ()
    return (reports,) if isinstance(reports, EditReport) else tuple(reports)
