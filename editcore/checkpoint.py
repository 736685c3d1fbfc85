"""Where a model's files lie and what can be told from them before any weight is read. Knows no torch.

A name is the embedded model, a folder, or a hub id. What the local cache holds whole is used as it is, at once: the hub
is asked only for what is missing, and only when it answers. Files that nothing good can come of are refused here, each
kind with its own sentence: no configuration, custom code, quantised weights, pickles, pieces missing or cut off, no
tokenizer.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from editcore.admission import HUB_ID
from editcore.assets import WORLD_NAME, world_dir
from editcore.errors import ModelError, first_line
from editcore.local import cached, hub_answers

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}  # of a number as safetensors name it
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "spm.model", "tekken.json", "vocab.bpe",
)  # fmt: skip
# All of a repository but its weights, and no code.
SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.bpe")
EMBEDDED = f"The embedded model {WORLD_NAME!r} is always there."
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, all on this machine."""

    name: str  # as it was asked for
    files: Path  # the folder that holds them
    folder: Path | None  # the same, when it was named as a folder; None for one of the hub
    revision: str  # commit of the hub; "" for a folder
    config: dict[str, Any]


@dataclass(frozen=True)
class Weights:
    """What the headers of safetensors files say."""

    files: tuple[Path, ...]
    parameters: int  # numbers in all tensors
    bytes: int  # on disk
    shapes: dict[str, tuple[int, ...]]  # by name


class NotFetched(Exception):
    """The weights are not on this machine, and were not to be fetched."""


class Fetch(Protocol):
    """Brings files of a repository into the cache; gives the folder they lie in."""

    def __call__(self, name: str, revision: str | None, patterns: Sequence[str]) -> Path: ...


def find(name: str, revision: str | None = None, fetch: Fetch | None = None) -> Checkpoint:
    """The files behind a name, checked; downloaded where the cache does not hold them and the hub answers.

    Args:
        revision: branch, tag or commit of a hub id; None: "main".
        fetch: downloads; None: from the hub.

    Raises:
        ModelError: they are not there, cannot be had, or nothing can be loaded from them.
    """
    if name == WORLD_NAME:
        if not (world_dir() / CONFIG).exists():
            raise ModelError(
                f"The embedded model {WORLD_NAME!r} is not in {world_dir().name}/.", "",
                "Run `editcore world build` to make it.",
            )  # fmt: skip
        return check(name, world_dir(), world_dir(), "")
    if _is_path(name):
        folder = Path(name).expanduser()
        if revision:
            raise ModelError(
                f"{name!r} is a folder and has no revisions, but {revision!r} was asked for.", "", "Leave it out."
            )
        if not name or not folder.is_dir():
            raise ModelError(f"There is no folder {name!r}.", "A hub id or a model folder was wanted.", "Check it.")
        return check(name, folder, folder, "")
    if not HUB_ID.fullmatch(name) or ".." in name or "--" in name:
        raise ModelError(
            f"{name!r} is no model's name.", "A hub id (owner/name) or a model folder was wanted.", EMBEDDED
        )
    files = _from_hub(name, revision, fetch or _download)
    return check(name, files, None, files.name if _COMMIT.fullmatch(files.name) else "")


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or os.sep * 2 in name or not name or Path(name).expanduser().is_dir()


def _from_hub(name: str, revision: str | None, fetch: Fetch) -> Path:
    """The folder in the cache that holds the model whole."""
    found = try_to_load_from_cache(name, CONFIG, cache_dir=constants.HF_HUB_CACHE, revision=revision)
    files = Path(found).parent if isinstance(found, str) else None
    lacking = missing(files) if files else []
    if files is not None and not lacking:
        return files
    if not hub_answers():
        raise _not_here(name, revision, lacking)
    files = fetch(name, revision, SMALL)
    if not (files / CONFIG).exists():
        return files
    _check_config(name, _read_config(name, files))  # before gigabytes are fetched for nothing
    return fetch(name, revision, _weight_patterns(files))


def _weight_patterns(files: Path) -> list[str]:
    return sorted(set(_shards(files).values())) if (files / INDEX).exists() else [WHOLE]


def _download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise ModelError(
            f"{name!r} is given only to people who accepted its terms.", "",
            "Accept them on its page, then run `hf auth login` here.",
        ) from error  # fmt: skip
    except RevisionNotFoundError as error:
        raise ModelError(f"{name!r} has no revision {revision!r}.", "", "Look it up on the model's page.") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        answer = getattr(error, "response", None)
        if isinstance(error, RepositoryNotFoundError) or getattr(answer, "status_code", None) == 404:
            raise ModelError(
                f"The hub knows no model {name!r}, or it is private.", "A hub id (owner/name) or a folder was wanted.",
                "Check the name; for a private one, run `hf auth login`.",
            ) from error  # fmt: skip
        raise ModelError(
            f"{name!r} could not be downloaded ({first_line(error)}).", "", "Try again: what is there is kept."
        ) from error


def fetch_small(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Fetches all but the weights. Raises NotFetched when those are asked for."""
    if tuple(patterns) != SMALL:
        raise NotFetched
    return _download(name, revision, patterns)


def _not_here(name: str, revision: str | None, lacking: Sequence[str]) -> ModelError:
    """Why a hub id cannot be had without the hub: a piece is missing, the revision is, or all of it is."""
    away = "The hub cannot be reached from here." if not constants.HF_HUB_OFFLINE else "HF_HUB_OFFLINE is set."
    if lacking:
        return ModelError(
            f"{name!r} is only partly on this machine: {', '.join(lacking[:3])} not.", away,
            "Connect to the network and start again.",
        )  # fmt: skip
    here = {model.name: model for model in cached()}
    if name in here:
        kept = ", ".join(dict.fromkeys(said for r in here[name].revisions for said in (*r.refs, r.commit[:12])))
        return ModelError(
            f"{name!r} is on this machine, but not its revision {revision or 'main'!r}.",
            away,
            "Use one that is here, or connect to the network.",
            f"Here are: {kept}.",
        )
    listed = f"In the local cache: {', '.join(here)}." if here else "The local cache holds no model."
    return ModelError(
        f"{name!r} is not on this machine, and the hub cannot be reached.", away,
        f"Connect to the network, or name a folder. {EMBEDDED}", listed,
    )  # fmt: skip


def missing(files: Path) -> list[str]:
    """Names of weight files that the folder should hold and does not; their content is not looked at."""
    if (files / INDEX).exists():
        return [shard for shard in sorted(set(_shards(files).values())) if not (files / shard).exists()]
    return [] if (files / WHOLE).exists() else [WHOLE]


def _shards(files: Path) -> dict[str, str]:
    """Which file of the folder holds which tensor; {} where the index cannot be read."""
    try:
        found = json.loads((files / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return {str(name): Path(str(file)).name for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def check(name: str, files: Path, folder: Path | None, revision: str) -> Checkpoint:
    """A folder as a model's files.

    Raises:
        ModelError: nothing can be loaded from it.
    """
    config = _read_config(name, files)
    _check_config(name, config)
    read_weights(name, files)
    if not any((files / file).exists() for file in VOCABULARIES):
        raise ModelError(
            f"{name!r} has no tokenizer.", f"One of {', '.join(VOCABULARIES[:4])} was wanted beside the weights.",
            "Put the model's own tokenizer files beside its weights.",
        )  # fmt: skip
    return Checkpoint(name, files, folder, revision, config)


def _read_config(name: str, files: Path) -> dict[str, Any]:
    if not (files / CONFIG).exists():
        if (files / "adapter_config.json").exists():
            raise ModelError(
                f"{name!r} is an adapter, not a model.", f"A folder with {CONFIG} was wanted.",
                "Open the model it was made for, and bring the adapter in as an edit.",
            )  # fmt: skip
        raise ModelError(f"{name!r} is not a model folder.", f"A folder with {CONFIG} was wanted.", "Check the path.")
    try:
        found = json.loads((files / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(name, CONFIG, first_line(error)) from error
    if not isinstance(found, dict):
        raise _damaged(name, CONFIG, "it holds no fields")
    return found


def _check_config(name: str, config: dict[str, Any]) -> None:
    quantised = config.get("quantization_config")
    if quantised:
        how = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise ModelError(
            f"The weights of {name!r} are stored quantised{f' ({how})' if how else ''}.",
            "Quantised weights cannot be edited exactly.",
            "Use the model they were made from, in float32, bfloat16 or float16.",
        )


def read_weights(name: str, files: Path) -> Weights:
    """The headers of all weight files, checked against the files' lengths.

    Raises:
        ModelError: there are none in safetensors, one is missing, or one is damaged.
    """
    lacking = missing(files)
    if (files / INDEX).exists() and not _shards(files):
        raise _damaged(name, INDEX, "it names no files")
    if lacking == [WHOLE]:
        raise _no_safetensors(name, files)
    if lacking:
        raise ModelError(
            f"{name!r} lacks {len(lacking)} of its weight files: {', '.join(lacking[:3])}.",
            "All of them were wanted.", "Download or copy the model again.",
        )  # fmt: skip
    names = sorted(set(_shards(files).values())) if (files / INDEX).exists() else [WHOLE]
    paths = tuple(files / file for file in names)
    shapes = {tensor: shape for path in paths for tensor, shape in _header(name, path).items()}
    count = sum(_product(shape) for shape in shapes.values())
    return Weights(paths, count, sum(path.stat().st_size for path in paths), shapes)


def _no_safetensors(name: str, files: Path) -> ModelError:
    others = {file.suffix for file in files.iterdir()}
    wanted = "Weights are read from safetensors alone."
    if others & {".bin", ".pt", ".pth", ".ckpt"}:
        return ModelError(
            f"The weights of {name!r} are pickles, which can run code when they are read.", wanted,
            "Use a revision with safetensors, or convert it where you trust it.",
        )  # fmt: skip
    known = [suffix[1:] for suffix in (".gguf", ".h5", ".msgpack", ".onnx") if suffix in others]
    kind = f" but {known[0]} files" if known else ""
    return ModelError(f"{name!r} holds no safetensors weights{kind}.", wanted, "Download or copy the model again.")


def _header(name: str, path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a file, by name.

    Raises:
        ModelError: the file is no safetensors file, or shorter or longer than it says.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(b"version "):
                raise _damaged(name, path.name, "it is a Git LFS pointer, not the weights: run `git lfs pull`")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 0 < length <= min(LONGEST_HEADER, size):
                raise _damaged(name, path.name, "its header cannot be read")
            found = json.loads(file.read(length))
        tensors = {tensor: about for tensor, about in found.items() if tensor != "__metadata__"}
        ends = 8 + length + max((about["data_offsets"][1] for about in tensors.values()), default=0)
        shapes = {tensor: tuple(map(int, about["shape"])) for tensor, about in tensors.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(name, path.name, f"its header cannot be read: {first_line(error)}") from error
    if size != ends:
        raise _damaged(name, path.name, f"{size:,} bytes where {ends:,} were wanted")
    return shapes


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _damaged(name: str, file: str, how: str) -> ModelError:
    return ModelError(f"{file} of {name!r} is damaged ({how}).", "", "Download or copy the model again.")
