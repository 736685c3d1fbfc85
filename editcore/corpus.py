"""Running text for a model: what its statistics are read on, and what is replayed beside an edit.

The embedded model has its own training text; for any other, a text file somebody stored for it; else what the model
writes itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch

from editcore.errors import BadRequest, Cancelled, Diverged
from editcore.handle import Handle
from editcore.records import Progress
from editcore.world.facts import load_world
from editcore.world.text import documents

WORLD_TOKENS = 60_000
WORLD_TEXT = "the world's own text"
OWN_TEXT = "text the model wrote itself"
LENGTH = 128  # tokens of a row
LEAST_LINES = 20  # of a stored text
SEED = 1
ROWS_AT_ONCE = 32  # that a model writes


def rows(
    handle: Handle,
    tokens: int,
    home: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[list[int]], str]:
    """About `tokens` tokens in rows of up to `LENGTH`, and in words whose text it is; the same each time.

    Raises:
        BadRequest: the stored text cannot be read any more.
        Cancelled: `stop()` became true.
        Diverged: the model's probabilities are not finite.
    """
    if handle.embedded:
        return world_rows(handle, max(tokens, WORLD_TOKENS)), WORLD_TEXT
    stored = path_in(home, handle) if home is not None else None
    if stored is not None and stored.exists():
        return _cut(handle, read(stored), tokens), "the text stored for this model"
    return own_words(handle, tokens, report, stop), OWN_TEXT


def kept(
    handle: Handle,
    tokens: int,
    home: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[list[int]], str]:
    """`rows`, made once for a handle and kept."""
    key = ("corpus", tokens)
    if key not in handle.memory:
        handle.memory[key] = rows(handle, tokens, home, report, stop)
    found: tuple[list[list[int]], str] = handle.memory[key]
    return found


def path_in(home: Path, handle: Handle) -> Path:
    """Where the data folder keeps a text for a model."""
    return home / "corpora" / f"{handle.fingerprint}.txt"


def store(handle: Handle, home: Path, file: Path) -> Path:
    """Keeps a copy of a text file for this model.

    Raises:
        BadRequest: it is no text, or too short to stand for what the model knows.
    """
    text = read(file)
    kept = path_in(home, handle)
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(kept)
    return kept


def read(file: Path) -> str:
    """A text file of at least `LEAST_LINES` lines that are not empty.

    Raises:
        BadRequest: it cannot be read, is binary, or is shorter.
    """
    wanted = f"A text file in UTF-8 with at least {LEAST_LINES} lines was wanted."
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadRequest(f"{file.name!r} cannot be read ({error.strerror}).", wanted, "Check the path.") from error
    except UnicodeDecodeError as error:
        raise BadRequest(f"{file.name!r} is no text ({error.reason}).", wanted, "Save it as plain text.") from error
    if "\0" in text:
        raise BadRequest(f"{file.name!r} is no text (it holds null characters).", wanted, "Save it as plain text.")
    lines = sum(bool(line.strip()) for line in text.splitlines())
    if lines < LEAST_LINES:
        raise BadRequest(f"{file.name!r} has {lines} line{'' if lines == 1 else 's'} of text.", wanted, "Add more.")
    return text


def _cut(handle: Handle, text: str, tokens: int) -> list[list[int]]:
    length = min(LENGTH, handle.context)
    ids: list[int] = []
    for line in text.splitlines():
        if len(ids) >= tokens:
            break
        if line.strip():
            ids += handle.tokenizer.encode(line.strip() + "\n", add_special_tokens=False)
    return [ids[i : i + length] for i in range(0, len(ids), length) if len(ids[i : i + length]) > 1]


def world_rows(handle: Handle, tokens: int) -> list[list[int]]:
    """About `tokens` tokens of the embedded world's documents, cut into rows."""
    stream, found, total = documents(load_world(), random.Random(SEED)), [], 0
    while total < tokens:
        row: list[int] = []
        while len(row) < LENGTH:
            row += handle.tokenizer.encode(" ".join(map(str, next(stream))), add_special_tokens=False)
        found.append(row[:LENGTH])
        total += len(found[-1])
    return found


@torch.no_grad()
def own_words(
    handle: Handle,
    tokens: int,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """About `tokens` tokens sampled from the model itself, with a fixed seed."""
    start = handle.tokenizer.bos_token_id
    start = handle.pad if start is None else int(start)
    length = min(LENGTH, handle.context)
    count = -(-tokens // length)
    found: list[list[int]] = []
    with torch.random.fork_rng(devices=[handle.device] if handle.device.type == "cuda" else []):
        torch.manual_seed(SEED)
        while len(found) < count:
            if stop():
                raise Cancelled("Stopped while the model wrote a text.", "Nothing was changed.")
            ids = torch.full((min(ROWS_AT_ONCE, count - len(found)), 1), start, device=handle.device)
            try:
                out = handle.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                    max_new_tokens=length - 1, min_new_tokens=length - 1, pad_token_id=handle.pad,
                )  # fmt: skip
            except RuntimeError as error:
                if "probability" not in str(error):
                    raise
                raise Diverged("Writing a text diverged: the model's probabilities are not finite.") from error
            found += out.tolist()
            report(Progress("statistics", len(found), count, text="the model writes the text it is measured on"))
    return found
