"""While a model is read, somebody hears how much of it has been."""

from __future__ import annotations

import contextlib
import time

import pytest
from transformers.utils import logging as transformers_logging

from editcore import loading, opening
from editcore.engine import InlineEngine
from editcore.loading import Loaded
from tests import models


@pytest.fixture
def folder(tmp_path):
    models.model("llama").save_pretrained(tmp_path / "tiny", max_shard_size="40KB")
    models.tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_every_tensor_is_counted_and_all_of_them_are_all_there_is(folder):
    heard = []
    opening.load(str(folder), listen=heard.append)
    total = sum(loading.sizes(folder).values())
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert total == sum(p.numel() * p.element_size() for p in models.model("llama").parameters())
    assert [h.total for h in heard] == [total] * len(heard) and len(heard) > 10
    assert heard[0].read == 0 and heard[-1].read == total
    assert [h.read for h in heard] == sorted(h.read for h in heard)
    steps = [b.read - a.read for a, b in zip(heard, heard[1:], strict=False)]
    assert max(steps) == 4 * models.VOCABULARY * models.WIDTH  # the embedding, in one piece


def test_nothing_is_left_behind_in_the_library(folder):
    before = transformers_logging.set_tqdm_hook(None)
    transformers_logging.set_tqdm_hook(before)
    with pytest.raises(ZeroDivisionError), loading.told(str(folder), None, lambda loaded: None):
        raise ZeroDivisionError
    assert transformers_logging.set_tqdm_hook(before) is before


def test_a_file_that_is_no_safetensors_file_is_left_out(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 40)
    (folder / "short.safetensors").write_bytes(b"\0")
    assert loading.sizes(folder) and "__metadata__" not in loading.sizes(folder)
    assert loading.folder_of(str(folder)) == folder and loading.folder_of("nobody/has-this") is None


@pytest.mark.parametrize(
    ("loaded", "said"),
    [(Loaded(0, 16_060_000_000, 0.0), "Loading 0 B of 16 GB."),
     (Loaded(4_200_000_000, 16_800_000_000, 10.0), "Loading 4.2 GB of 17 GB, about 30 s left.")],
)  # fmt: skip
def test_it_is_said_in_bytes_and_seconds(loaded, said):
    assert str(loaded) == said


def test_the_engine_says_how_far_the_model_is_until_it_is_ready(tmp_path):
    import fake_desk

    said = []

    def slow(opening, home, say):
        for share in (1, 2):
            say(f"Loading {share} of 2 GB.")
            said.append(engine.health().message)
        return fake_desk.open_desk(opening, home, say)

    with contextlib.closing(InlineEngine.__new__(InlineEngine)) as engine:
        InlineEngine.__init__(engine, "fake", tmp_path, slow)
        end = time.monotonic() + 20
        while engine.health().state == "starting" and time.monotonic() < end:
            time.sleep(0.01)
        assert said == ["Loading 1 of 2 GB.", "Loading 2 of 2 GB."] and engine.health().message == ""
