"""Which model a page may open: the embedded one, a hub id, or a folder within those allowed. Opens and loads nothing.

Whoever starts a page names its model, and may open any folder of his own machine; what reaches the page otherwise (the
environment, a file, a name typed into a page that only this computer can open) is held against the allow-list after
every link in it has been followed. Visitors from elsewhere never name one. A refusal is the same whatever is on the
disk, so that nobody can ask the disk by being refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from editcore import settings
from editcore.assets import WORLD_NAME
from editcore.errors import ModelError
from editcore.home import home_dir
from editcore.records import Opening
from editcore.settings import Settings

NOT_ALLOWED = "may not be opened here"
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
# From the root of a disk on, up to its last part; after a letter or another slash it is a name or an address. One in
# quotes may hold spaces.
_QUOTED = re.compile(r"(['\"])(?:[A-Za-z]:)?[/\\](?:[^'\"\n]*[/\\])*([^'\"/\\\n]*)\1")
_PATH = re.compile(r"(?<![\w./:…'\"])(?:[A-Za-z]:)?[/\\](?:[^/\\\s'\"]+[/\\])*([^/\\\s'\",;:)]+)")


def admitted(name: str, limits: Settings) -> str:
    """The model as it is handed to the engine, a folder with its links followed.

    Raises:
        ModelError: it may not be opened here.
    """
    if name == WORLD_NAME:
        return name
    folder = _folder(name)
    if folder is None:
        if HUB_ID.fullmatch(name) and ".." not in name and (not limits.models or name in limits.models):
            return name
    elif any(folder.is_relative_to(root) for root in map(_folder, limits.model_roots) if root is not None):
        return str(folder)
    raise ModelError(
        f"The model {name[:120]!r} {NOT_ALLOWED}.",
        "The embedded model, a hub id or a folder within the allowed ones was wanted.",
        "Whoever runs this page allows others with the settings models and model_roots.",
    )


def completed(opening: Opening, limits: Settings) -> Opening:
    """The opening with what it leaves open as the settings say; a revision is only of the model they name."""
    own = opening.model == limits.model or Path(opening.model) == _folder(limits.model)
    placed = opening if opening.device or opening.device_map else limits
    return Opening(
        opening.model,
        opening.revision or (limits.revision if own else ""),
        placed.device,
        opening.dtype or limits.dtype,
        placed.device_map,
    )


def public_name(name: str) -> str:
    """A model's name as a page shows it: of a folder, what it is called itself and not where it lies."""
    folder = None if name == WORLD_NAME else _folder(name)
    return name if folder is None else f"…/{folder.name}"


def discreet(error: ModelError) -> ModelError:
    """The same refusal for people who did not name the model: no path and nothing else of the disk is told."""
    parts = (_QUOTED.sub(r"\1…/\2\1", part) for part in (error.seen, error.wanted, error.try_))
    return type(error)(*(_PATH.sub(r"…/\1", part) for part in parts))


def _folder(name: str) -> Path | None:
    """The folder of that name, its links followed; None when there is none."""
    try:
        found = Path(name).expanduser().resolve(strict=True)
        return found if found.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


def settle(flags: dict[str, Any]) -> Settings:
    """The settings of a page about to be started, left in the environment for it and its worker.

    Folders are written out in full, because the page works in another directory. The folder its owner names is
    allowed, and no other, where no folders are configured.

    Raises:
        BadSetting: see `settings.read`.
        ModelError: see `admitted`.
    """
    limits = settings.read(flags)
    own = _folder(limits.model)
    roots = [str(Path(root).expanduser().resolve()) for root in limits.model_roots]
    if own and limits.model != WORLD_NAME:
        flags = {**flags, "model": str(own), "model_roots": roots or [str(own)]}
    elif roots:
        flags = {**flags, "model_roots": roots}
    limits = settings.read(flags)
    admitted(limits.model, limits)
    os.environ["EDITCORE_HOME"] = str(home_dir().absolute())
    settings.export(flags)
    return limits
