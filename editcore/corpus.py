"""Running text for a model: what its statistics are read on, and what is replayed beside an edit.

The embedded model has its own training text; for any other, a text file somebody stored for it; else what the model
writes itself, beside a neutral text that travels with the product.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from editcore import halves
from editcore.assets import assets_root
from editcore.errors import BadRequest, Cancelled, Diverged
from editcore.handle import Handle
from editcore.records import Progress
from editcore.spans import Row
from editcore.suggest import general_probes
from editcore.world.facts import load_world
from editcore.world.text import documents

WORLD_TOKENS = 60_000
WORLD_TEXT = "the world's own text"
OWN_ANSWERS = "what the model itself answers to general prompts"
STORED_TEXT = "the text stored for this model"
OWN_TEXT = "text the model wrote itself and a neutral text"
LENGTH = 128  # tokens of a row
NEUTRAL_EVERY = 3  # one row in so many is neutral text, until all of it has been read
OPENING = 4  # words of neutral text, at most, that the model goes on from
LEAST_LINES = 20  # of a stored text
SEED = 1
CACHE_BYTES = {"cuda": 8 << 30, "cpu": 1 << 30}  # for keys and values of what is being written
SAID_EVERY = 4  # tokens between two reports of a model that writes
MOST_ROWS = 256  # that a model writes at once
ROWS_AT_ONCE = 32  # that an encoder-decoder answers

Report = Callable[[Progress], None]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Text:
    """A running text in rows, made piece by piece; the same each time, and any piece without those before it."""

    source: str  # whose text it is, in words
    slug: str  # the same for a file name
    tokens: int | None  # it has; None: without end
    written: float  # share of its rows that the model has to write first
    piece: Callable[[int, int, Report, Stop], list[list[int]]]  # (number, rows) to rows; none behind the end


def text_of(handle: Handle, tokens: int, home: Path | None = None) -> Text:
    """The running text there is for a model.

    Args:
        tokens: as many as will be wanted at most.

    Raises:
        BadRequest: the stored text cannot be read any more.
    """
    if handle.embedded:
        return given(world_rows(handle, tokens), WORLD_TEXT, slug_of(handle, home))
    stored = path_in(home, handle) if home is not None else None
    if stored is not None and stored.exists():
        return given(_cut(handle, read(stored).splitlines(), tokens), STORED_TEXT, slug_of(handle, home))
    return foreign(handle)


def slug_of(handle: Handle, home: Path | None) -> str:
    """Which text there is for a model, for a file name; a stored one is told from another by its content."""
    if handle.embedded:
        return "world"
    try:
        return f"stored-{hashlib.sha256(path_in(home, handle).read_bytes()).hexdigest()[:8]}" if home else "own"
    except FileNotFoundError:
        return "own"


def written_share(handle: Handle, home: Path | None) -> float:
    """How much of the text there is for a model it has to write first."""
    return 1 - 1 / NEUTRAL_EVERY if slug_of(handle, home) == "own" else 0.0


def foreign(handle: Handle) -> Text:
    """For a model whose training text is not known: what it writes itself, and neutral text."""
    return Text(OWN_TEXT, "own", None, 1 - 1 / NEUTRAL_EVERY, partial(_own_piece, handle))


def given(rows: list[list[int]], source: str, slug: str) -> Text:
    """A text that exists already. Its pieces are drawn from all over it: any of them stands for the whole."""
    order = random.Random(SEED).sample(rows, len(rows))

    def piece(number: int, count: int, _report: Report, _stop: Stop) -> list[list[int]]:
        return order[number * count : (number + 1) * count]

    return Text(source, slug, sum(map(len, rows)), 0, piece)


def rows(
    handle: Handle,
    tokens: int,
    home: Path | None = None,
    report: Report = lambda progress: None,
    stop: Stop = lambda: False,
) -> tuple[list[list[int]], str]:
    """About `tokens` tokens in rows of up to `LENGTH`, and in words whose text it is; the same each time.

    Raises:
        BadRequest: the stored text cannot be read any more.
        Cancelled: `stop()` became true.
        Diverged: the model's probabilities are not finite.
    """
    text = text_of(handle, max(tokens, WORLD_TOKENS) if handle.embedded else tokens, home)
    if text.tokens is not None:
        return text.piece(0, text.tokens, report, stop), text.source
    count = -(-tokens // row_length(handle))
    found: list[list[int]] = []
    while sum(map(len, found)) < tokens:
        size = min(count, rows_at_once(handle))
        found += text.piece(len(found) // size, size, report, stop)
    return found, text.source


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


def missing(handle: Handle, tokens: int) -> int:
    """How many tokens `kept` would still have to make."""
    if not tokens or ("corpus", tokens) in handle.memory:
        return 0
    return max(tokens, WORLD_TOKENS) if handle.embedded else tokens


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


def row_length(handle: Handle) -> int:
    """Tokens of a full row."""
    return min(LENGTH, handle.context)


def rows_at_once(handle: Handle) -> int:
    """How many rows the model can write side by side."""
    config = handle.model.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", 1) or 1)
    shared = int(getattr(config, "num_key_value_heads", None) or heads) / heads
    bytes_of_token = 2 * len(handle.anatomy.blocks) * handle.anatomy.site(0).d_out * shared * handle.dtype.itemsize
    room = CACHE_BYTES["cuda" if handle.device.type == "cuda" else "cpu"]
    return max(8, min(MOST_ROWS, int(room / (bytes_of_token * row_length(handle)))))


def _lead(handle: Handle) -> list[int]:
    """Tokens the tokenizer puts in front of every text."""
    bare, whole = (handle.tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return list(whole[: len(whole) - len(bare)]) if whole[len(whole) - len(bare) :] == bare else []


def _cut(handle: Handle, lines: Sequence[str], tokens: int) -> list[list[int]]:
    lead = _lead(handle)
    length = row_length(handle) - len(lead)
    ids: list[int] = []
    for line in lines:
        if len(ids) >= tokens:
            break
        if line.strip():
            ids += handle.tokenizer.encode(line.strip() + "\n", add_special_tokens=False)
    return [lead + ids[i : i + length] for i in range(0, len(ids), length) if len(ids[i : i + length]) > 1]


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


@lru_cache(maxsize=1)
def _prose() -> tuple[str, ...]:
    """The neutral text, a paragraph each."""
    return tuple((assets_root() / "prose.txt").read_text(encoding="utf-8").splitlines())


def _neutral(handle: Handle) -> list[list[int]]:
    """The neutral text in rows, in an order of its own."""
    if "neutral rows" not in handle.memory:
        rows = _cut(handle, _prose(), MOST_ROWS * LENGTH)
        handle.memory["neutral rows"] = random.Random(SEED).sample(rows, len(rows))
    found: list[list[int]] = handle.memory["neutral rows"]
    return found


def _own_piece(handle: Handle, number: int, count: int, report: Report, stop: Stop) -> list[list[int]]:
    """Neutral rows, as long as there are any, spread evenly among rows the model writes; kept for other layers."""
    key = "own piece", number, count
    if key not in handle.memory:
        share = count // NEUTRAL_EVERY
        neutral = _neutral(handle)[number * share : (number + 1) * share]
        found = written_rows(handle, count - len(neutral), number, report, stop) + neutral
        handle.memory[key] = random.Random(number).sample(found, len(found))
    piece: list[list[int]] = handle.memory[key]
    return piece


def is_written(handle: Handle, rows: int) -> bool:
    """True when the first piece of so many rows of `foreign` text is there already."""
    return ("own piece", 0, rows) in handle.memory


def own_words(
    handle: Handle,
    tokens: int,
    report: Report = lambda progress: None,
    stop: Stop = lambda: False,
) -> list[list[int]]:
    """About `tokens` tokens sampled from the model itself; the same each time."""
    return written_rows(handle, -(-tokens // row_length(handle)), 0, report, stop)


@torch.no_grad()
def written_rows(
    handle: Handle, count: int, number: int, report: Report = lambda progress: None, stop: Stop = lambda: False
) -> list[list[int]]:
    """`count` rows sampled from the model, each behind none to `OPENING` words of neutral text.

    They are the same for the same `number`, whatever was written before.

    Raises:
        Cancelled: `stop()` became true.
        Diverged: the model's probabilities are not finite.
    """
    length, chance = row_length(handle), random.Random(f"{SEED} {number}")
    openings = [_opening(handle, chance)[: length // 2] for _ in range(count)]
    found: list[list[int]] = []
    with torch.random.fork_rng(devices=[handle.device] if handle.device.type == "cuda" else []):
        torch.manual_seed(SEED + number)
        while len(found) < count:
            some = openings[len(found) : len(found) + rows_at_once(handle)]
            found += _written(handle, some, length, report, stop)
    return found


def _opening(handle: Handle, chance: random.Random) -> list[int]:
    start = handle.tokenizer.bos_token_id
    words = chance.choice(_prose()).split(" ")
    begin, size = chance.randrange(len(words)), chance.randrange(OPENING + 1)
    text = " ".join(words[begin : begin + size])
    first = [handle.pad if start is None else int(start)]
    return first + handle.tokenizer.encode(text, add_special_tokens=False) if text else first


def _written(handle: Handle, openings: list[list[int]], length: int, report: Report, stop: Stop) -> list[list[int]]:
    longest = max(map(len, openings))
    ids = torch.full((len(openings), longest), handle.pad)
    mask = torch.zeros(len(openings), longest, dtype=torch.long)
    for i, row in enumerate(openings):  # writing wants its padding on the left
        ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    pen = _Pen(length - longest, report, stop)
    model = halves.quick(handle.model, handle.device)
    hook = model.get_output_embeddings().register_forward_pre_hook(_in_one_piece)
    try:
        out = model.generate(
            input_ids=ids.to(handle.device), attention_mask=mask.to(handle.device), do_sample=False, num_beams=1,
            repetition_penalty=1.0, max_new_tokens=length - longest, min_new_tokens=length - longest,
            pad_token_id=handle.pad, logits_processor=[pen],
        )  # fmt: skip
    finally:
        hook.remove()
    if pen.spoilt is not None and bool(pen.spoilt):
        raise Diverged("Writing a text diverged: the model's probabilities are not finite.")
    return [row[longest - len(opening) :] for row, opening in zip(out.tolist(), openings, strict=True)]


def _in_one_piece(_m: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The last states of several rows side by side: read where they stand, the head's matrix is copied for each row."""
    return (args[0].contiguous(), *args[1:])


class _Pen(LogitsProcessor):  # type: ignore[misc]
    """Draws every token that is written: gives it alone a chance. Reports, stops, and notes what is no probability.

    A token is where the running sum of probabilities passes a random number: one number a row, where the library's own
    draw takes one for every word there is. What is no probability is replaced before.
    """

    def __init__(self, tokens: int, report: Report, stop: Stop) -> None:
        self.done, self.tokens, self.report, self.stop = 0, tokens, report, stop
        self.spoilt: Tensor | None = None  # stays on the device until all is written

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.stop():
            raise Cancelled("Stopped while the model wrote a text.", "Nothing was changed.")
        wrong = ~scores.amax(-1).isfinite().all()  # of one that is not a number, too
        self.spoilt = wrong if self.spoilt is None else self.spoilt | wrong
        self.done += 1
        if self.done % SAID_EVERY == 1:
            text = "the model writes the text it is measured on"
            self.report(Progress("statistics", self.done, self.tokens, text=text))
        likely = torch.softmax(torch.nan_to_num(scores, nan=0.0, posinf=1e4, neginf=-1e9), -1).double().cumsum(-1)
        least = (1 - torch.rand(len(likely), 1, dtype=likely.dtype, device=likely.device)) * likely[:, -1:]
        return torch.full_like(scores, -1e9).scatter(1, torch.searchsorted(likely, least), 0.0)
