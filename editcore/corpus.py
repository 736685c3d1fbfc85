"""Running text for a model: what its statistics are read on, and what is replayed beside an edit.

The embedded model has its own training text; for any other, a text file somebody stored for it; else what the model
writes itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from editcore.errors import BadRequest, Cancelled, Diverged
from editcore.handle import Handle
from editcore.records import Progress
from editcore.spans import Row
from editcore.suggest import general_probes
from editcore.world.facts import load_world
from editcore.world.text import documents

WORLD_TOKENS = 60_000
WORLD_TEXT = "the world's own text"
OWN_TEXT = "text the model wrote itself"
OWN_ANSWERS = "what the model itself answers to general prompts"
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


def replayed(
    handle: Handle,
    count: int,
    length: int,
    home: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[Row], str]:
    """Texts to choose `count` from that are replayed beside an edit, and in words whose they are; the same each time.

    Running text of up to `length` tokens. An encoder-decoder knows no running text of its own: unless one is stored for
    it, it answers general prompts. See `rows` for what it raises.
    """
    stored = path_in(home, handle) if home is not None else None
    if handle.encoder_decoder and not (stored is not None and stored.exists()):
        key = ("own answers", count, length)
        if key not in handle.memory:
            handle.memory[key] = own_answers(handle, count, length, report, stop)
        answered: list[Row] = handle.memory[key]
        return answered, OWN_ANSWERS
    texts, source = kept(handle, count * length, home, report, stop)
    return [handle.text_row(text[:length]) for text in texts], source


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


def own_answers(
    handle: Handle,
    count: int,
    length: int,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Row]:
    """What an encoder-decoder answers to `count` of the shipped general prompts, sampled with a fixed seed, as rows.

    Args:
        length: most tokens of an answer; its closing mark is left out, so that where it ends is said too.
    """
    shipped = general_probes()
    chosen = random.Random(SEED).sample(shipped, min(count, len(shipped)))
    prompts = [handle.plain_row(prompt).ids for prompt, _ in chosen]
    found: list[Row] = []
    with torch.random.fork_rng(devices=[handle.device] if handle.device.type == "cuda" else []):
        torch.manual_seed(SEED)
        for begin in range(0, len(prompts), ROWS_AT_ONCE):
            if stop():
                raise Cancelled("Stopped while the model wrote a text.", "Nothing was changed.")
            part = prompts[begin : begin + ROWS_AT_ONCE]
            with _finite():
                said = handle.say(part, length, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
            found += [Row((*p, *_up_to(ids, handle)), len(p)) for p, ids in zip(part, said.tolist(), strict=True)]
            report(Progress("statistics", len(found), len(prompts), text="the model writes what is replayed"))
    return found


def _up_to(ids: list[int], handle: Handle) -> list[int]:
    """An answer without its closing mark and what stands behind it."""
    ends = {handle.pad, *handle.closing}
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


@contextmanager
def _finite() -> Iterator[None]:
    """Raises Diverged where a model that is being sampled from gives no probabilities."""
    try:
        yield
    except RuntimeError as error:
        if "probability" not in str(error):
            raise
        raise Diverged("Writing a text diverged: the model's probabilities are not finite.") from error


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
            with _finite():
                out = handle.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                    max_new_tokens=length - 1, min_new_tokens=length - 1, pad_token_id=handle.pad,
                )  # fmt: skip
            found += out.tolist()
            report(Progress("statistics", len(found), count, text="the model writes the text it is measured on"))
    return found
