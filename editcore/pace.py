"""How fast a model reads on this device, and from that how long a one-off preparation takes."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from editcore import corpus
from editcore.anatomy import Site
from editcore.handle import Handle
from editcore.learned import Dials
from editcore.records import EXAMPLE_CHARACTERS
from editcore.statistics import tokens_wanted

TRIED = 8, 16  # rows and tokens of the pass that is timed
CHARACTERS = 4.0  # of a token
PASSES = 4.0  # forward, with backward counted as two, over every text of an example


@torch.no_grad()
def seconds_of_tokens(handle: Handle) -> tuple[float, float]:
    """Seconds one token takes when many are read at once, and seconds of a pass that reads a single one.

    Timed once for a handle.
    """
    if "pace" not in handle.memory:
        rows, length = TRIED
        length = min(length, handle.context)
        many = torch.full((rows, length), handle.pad, device=handle.device)
        with handle.using([]):
            _pass(handle, many)  # the first pass of a shape costs more
            handle.memory["pace"] = (
                _timed(handle, many) / many.numel(),
                _timed(handle, many[:1, :1]),
            )
    found: tuple[float, float] = handle.memory["pace"]
    return found


def _timed(handle: Handle, ids: torch.Tensor) -> float:
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        float(_pass(handle, ids)[0, 0, 0])  # waits for the device
        taken.append(time.perf_counter() - began)
    return min(taken)


def _pass(handle: Handle, ids: torch.Tensor) -> torch.Tensor:
    """Logits of ids read by the model, or by its encoder and said by its decoder."""
    more = {"decoder_input_ids": ids} if handle.encoder_decoder else {}
    found: torch.Tensor = handle.model(input_ids=ids, use_cache=False, **more).logits
    return found


def of_training(handle: Handle, dials: Dials) -> float:
    """Seconds a training on examples of usual length is expected to take if it runs to its last step."""
    token, _ = seconds_of_tokens(handle)
    return dials.steps * dials.edits * PASSES * EXAMPLE_CHARACTERS / CHARACTERS * token


def of_statistics(handle: Handle, site: Site, home: Path | None) -> float:
    """Seconds until the second moment of a site is estimated, on a stored text or one the model writes itself."""
    token, single = seconds_of_tokens(handle)
    wanted = tokens_wanted(site)
    if handle.embedded or (home is not None and corpus.path_in(home, handle).exists()):
        return wanted * token
    written = -(-wanted // (corpus.LENGTH * corpus.ROWS_AT_ONCE)) * corpus.LENGTH  # passes, each a token for many rows
    return written * max(single, corpus.ROWS_AT_ONCE * token) + wanted * token
