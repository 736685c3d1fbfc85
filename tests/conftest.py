"""What every test shares: no network, one thread, and the embedded model where a test asks for it."""

from __future__ import annotations

import os
import sys

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported: tests of the page never do


@pytest.fixture(scope="session", autouse=True)
def one_text():
    """A model writes with its own weights, whatever this machine multiplies: tests then read the same text anywhere.

    Yields `halves.quick`, which is put aside for that.
    """
    halves = sys.modules.get("editcore.halves")
    if halves is None:  # nothing that is tested loads a model
        yield None
        return
    with pytest.MonkeyPatch.context() as patch:
        quick = halves.quick
        patch.setattr(halves, "quick", lambda model, device: model)
        yield quick


@pytest.fixture(scope="session")
def world_handle():
    """The embedded model, loaded once."""
    from editcore.opening import load

    return load(device="cpu")


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL to throw away; where there is none the test is skipped with a reason, on CI it fails."""
    from tests import postgres

    folder = postgres.programs()
    if folder is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(postgres.MISSING)
    cluster = postgres.Cluster(folder)
    yield cluster
    cluster.end()
