"""Which models are already on this machine. Reads the hub's cache listing; downloads nothing."""

from __future__ import annotations

from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound


def local_models() -> list[str]:
    """Names of models in the local hub cache, sorted; empty when there is no cache."""
    try:
        found = scan_cache_dir()
    except CacheNotFound:
        return []
    return sorted(repo.repo_id for repo in found.repos if repo.repo_type == "model")
