"""Which models are already on this machine, and whether the hub can be asked for others. Downloads nothing."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request

from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

PATIENCE = 3.0  # seconds for the hub to answer at all


def local_models() -> list[str]:
    """Names of models in the local hub cache, sorted; empty when there is no cache."""
    try:
        found = scan_cache_dir()
    except CacheNotFound:
        return []
    return sorted(repo.repo_id for repo in found.repos if repo.repo_type == "model")


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
