"""Which models are already on this machine, and whether the hub can be asked for others. Downloads nothing."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

PATIENCE = 3.0  # seconds for the hub to answer at all


@dataclass(frozen=True)
class Kept:
    """One revision of a model in the local cache."""

    commit: str
    refs: tuple[str, ...]  # branches and tags that stood for it when it was fetched
    files: Path  # the folder that holds them
    bytes: int  # on disk


@dataclass(frozen=True)
class Cached:
    """One model in the local cache."""

    name: str
    revisions: tuple[Kept, ...]  # the one fetched last first


def cached() -> tuple[Cached, ...]:
    """The models of the local hub cache by name; none when there is no cache."""
    try:
        found = scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, OSError):
        return ()
    models = []
    for repo in found.repos:
        if repo.repo_type == "model":
            newest = sorted(repo.revisions, key=lambda r: r.last_modified, reverse=True)
            kept = (Kept(r.commit_hash, tuple(sorted(r.refs)), r.snapshot_path, r.size_on_disk) for r in newest)
            models.append(Cached(repo.repo_id, tuple(kept)))
    return tuple(sorted(models, key=lambda model: model.name))


def local_models() -> list[str]:
    """Names of models in the local hub cache, sorted; empty when there is no cache."""
    return [model.name for model in cached()]


def hub_answers(patience: float = PATIENCE) -> bool:
    """True when the hub can be reached. Asked once before a download: its own retries take most of a minute.

    The question runs on a thread of its own, because looking a name up keeps to no time limit.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    heard = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=patience).close()
        except urllib.error.HTTPError:
            pass  # an answer, if an unfriendly one
        except (OSError, ValueError):
            return
        heard.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    return heard.is_set()
