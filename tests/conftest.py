"""What every test shares: no network, one thread, and the embedded model where a test asks for it."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported: tests of the page never do


@pytest.fixture(scope="session")
def world_handle():
    """The embedded model, loaded once."""
    from editcore.handle import load

    return load(device="cpu")
