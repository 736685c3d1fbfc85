"""Second moments being estimated: one pass over a text for every site, until held-out keys say that it is enough.

How good an estimate is, is asked the way an edit would: u = C^-1 k / (k^T C^-1 k) writes at a key k and moves another
key h by (u.h)^2. On the text C was read on that is u^T C u on average; on text it was not read on it is more, the
fewer tokens there were. The *excess* is the second over the first. For n Gaussian keys of width m it is about
1 / (1 - m/n)^2 (after Reed, Mallett and Brennan 1974), from which the tokens still wanted follow.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from editcore import pace, statfiles
from editcore.anatomy import Site
from editcore.corpus import Text, is_written, row_length, rows_at_once
from editcore.errors import Cancelled, Diverged
from editcore.factors import RIDGE, factorise
from editcore.handle import Handle
from editcore.records import Progress
from editcore.trace import capture

LEAST, MOST = 2.0, 10.0  # tokens for each entry of a key that an estimate is made from
USUAL = 4.0  # tokens for each entry of a key that are expected to be enough
GOOD = 1.75  # an excess that is good enough: at 1.6, S is within .005 of what 100 times more tokens give (README)
USUAL_SHARE = 0.03  # added unless another share moves held-out keys much less: few tokens and many edit alike with it
LARGER, SMALLER = (0.1, 1.0), (1e-2, RIDGE)  # tried one after the other while they move less
MUCH_LESS = 0.05  # of what the usual share moves
HELD_ROWS = 12  # rows kept out of the sums until the end
PROBES = 64  # held-out keys an edit is tried at
MARGIN = 1.05  # some rows are shorter than others
JUDGED = 3  # times an estimate is usually factorised
BATCH_TOKENS = {"cuda": 8192, "cpu": 2048}  # read in one pass
STRIPES = 8  # a product of keys is symmetric: it is computed in so many stripes, each from the diagonal on
SAVED_EVERY = 20.0  # seconds between two savings of an estimate that goes on
TINY = 1e-30
READING = "reading what the model usually stores there"


@dataclass(frozen=True)
class Estimate:
    """A second moment and how far it can be trusted."""

    second: Tensor  # mean of k k^T [d_in, d_in], fp64
    tokens: int  # keys it is the mean over
    shrinkage: float  # share of the mean eigenvalue that is to be added to the diagonal
    excess: float | None  # how much more held-out keys are moved than read ones; None: not tried


@dataclass(frozen=True)
class Bounds:
    """When to stop reading."""

    least: int  # tokens
    most: int
    usual: int
    good: float = GOOD


def bounds(sites: Sequence[Site]) -> Bounds:
    """For the widest of some sites."""
    width = max(site.d_in for site in sites)
    return Bounds(math.ceil(LEAST * width), math.ceil(MOST * width), math.ceil(USUAL * width))


@dataclass
class Sums:
    """An estimate that goes on: everything it needs to go on from here."""

    rows: int  # of a piece of text
    totals: dict[str, Tensor]  # path -> sum of k k^T, right on and above the diagonal [d_in, d_in], fp64
    held: dict[str, Tensor]  # path -> keys that are not in it [held tokens, d_in], fp32
    tokens: int = 0  # in the totals
    piece: int = 0  # the next piece of text
    left: list[list[int]] = field(default_factory=list)  # rows of the piece before it that were not read yet


def excess(second: Tensor, shrinkage: float, probes: Tensor, beside: Tensor) -> tuple[float, float]:
    """How much more an edit moves keys beside those C was read on, and log of how much that is (see the module).

    Args:
        second: C [d_in, d_in], fp64; shrinkage: what u is computed with, as for `factorise`.
        probes: held-out keys an edit is tried at [n, d_in]; beside: held-out keys that should not move [tokens, d_in].

    Returns:
        The median over probes of u^T H u / u^T C u, and the mean of log u^T H u; H = E[h h^T] over `beside`.

    Raises:
        LinAlgError: C is the moment of nothing.
    """
    columns = probes.double().T
    directions = factorise(second, shrinkage).solve(columns)
    directions = directions / (columns * directions).sum(0).clamp_min(TINY)
    moved = (beside.double() @ directions).square().mean(0).clamp_min(TINY)
    met = (directions * (second @ directions)).sum(0).clamp_min(TINY)
    return float((moved / met).median()), float(moved.log().mean())


@torch.no_grad()
def read(handle: Handle, sites: Sequence[Site], rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Each site's inputs [rows * longest, d_in], fp32, in one pass up to the last site; zero behind a row's end."""
    ids, mask = handle.batch(rows)
    with capture({site.path: site.module for site in sites}, inputs=True, stop=True) as seen:
        handle.model(input_ids=ids, attention_mask=mask, use_cache=False)
    behind = ~mask.bool().reshape(-1, 1)
    flat = {path: keys.reshape(len(behind), -1).float() for path, keys in seen.items()}
    return {path: keys.masked_fill(behind.to(keys.device), 0.0) for path, keys in flat.items()}


def add(total: Tensor, keys: Tensor) -> None:
    """Adds the sum of k k^T over keys [n, d_in] (products in fp32) to a total in fp64, on and above its diagonal."""
    step = -(-len(total) // STRIPES)
    for begin in range(0, len(total), step):
        total[begin : begin + step, begin:] += keys[:, begin : begin + step].T @ keys[:, begin:]


def whole(total: Tensor) -> Tensor:
    """The symmetric matrix whose part on and above the diagonal is given."""
    return total.triu() + total.triu(1).T


@contextmanager
def exact_products() -> Iterator[None]:
    """fp32 products are computed in fp32 while the block runs, also where a GPU would rather round its factors."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def second_moments(
    handle: Handle, sites: Sequence[Site], rows: Sequence[Sequence[int]], size: int = 16
) -> tuple[dict[str, Tensor], int]:
    """Mean of k k^T at each site over all tokens of `rows` ([d_in, d_in], fp64), and the number of tokens."""
    totals = _zeros(sites)
    with exact_products():
        for begin in range(0, len(rows), size):
            for path, keys in read(handle, sites, rows[begin : begin + size]).items():
                add(totals[path], keys)
    tokens = sum(map(len, rows))
    return {path: whole(total) / max(1, tokens) for path, total in totals.items()}, tokens


def estimate(
    handle: Handle,
    sites: Sequence[Site],
    text: Text,
    limits: Bounds,
    home: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Estimate]:
    """Second moments of all sites, read together until they are good enough or `limits.most` is reached.

    Args:
        home: where an estimate that is stopped is kept, and taken up again; None: nowhere.

    Raises:
        Cancelled: `stop()` became true; what was read is kept.
        Diverged: the model's activations are not finite.
    """
    kept = None if home is None else statfiles.folder_in(home) / f"{_key(handle, sites, text)}.partial"
    sums = _taken_up(sites, kept) or Sums(_rows_of_piece(handle, limits), _zeros(sites), {})
    each, usual = _seconds_each(handle, sites, limits, text.written), min(limits.usual, text.tokens or limits.usual)
    clock = _Clock(each, row_length(handle), sums, usual, report)
    found: dict[str, tuple[float, float]] = {}  # path -> of `_best`
    saved = time.monotonic()
    with exact_products():
        while True:
            if not sums.left and sums.tokens >= limits.least:
                found = {site.path: _best(sums, site.path) for site in sites}
                worst = max(tried for _, tried in found.values())
                clock.judged(worst, min(limits.most, _enough(sums.tokens, worst, limits.good)))
                if worst <= limits.good or sums.tokens >= limits.most:
                    break
            found = {}
            try:
                if not sums.left and not _next_piece(handle, sites, sums, text, clock, stop):
                    break
                _read_some(handle, sites, sums, stop)
            except Cancelled:
                _save(kept, sums)
                raise
            clock.read()
            if time.monotonic() - saved > SAVED_EVERY:
                _save(kept, sums)
                saved = time.monotonic()
    found = found or {site.path: _best(sums, site.path) for site in sites}
    done = {path: _finished(sums, path, *best) for path, best in found.items()}
    if kept is not None:
        with suppress(OSError):
            kept.unlink(missing_ok=True)
    return done


def seconds_expected(handle: Handle, sites: Sequence[Site], limits: Bounds, written: float) -> float:
    """How long `estimate` is expected to take, from how fast the model reads here.

    Args:
        written: share of the text that the model has to write first.
    """
    judging = sum(2 * site.d_in**3 / 3 for site in sites) / _numbers(handle)  # in fp64, at about half the pace of fp32
    length, tokens = row_length(handle), limits.usual
    if written:  # whole pieces are, and the first rows are held out
        rows = _rows_of_piece(handle, limits)
        tokens = -(-(tokens + HELD_ROWS * length) // (rows * length)) * rows * length
        written = 0.0 if is_written(handle, rows) else written
    return tokens * sum(_seconds_each(handle, sites, limits, written)) + JUDGED * _token(handle) * judging


def _seconds_each(handle: Handle, sites: Sequence[Site], limits: Bounds, written: float) -> tuple[float, float]:
    """Seconds a token of the text takes to be written and to be read."""
    token, writing = _token(handle), written * pace.of_writing(handle, _rows_of_piece(handle, limits))
    depth = (max(site.layer for site in sites) + 1) / len(handle.anatomy.blocks)
    products = sum(1.2 * site.d_in**2 for site in sites) / _numbers(handle)
    return writing, token * (depth + products)


def _token(handle: Handle) -> float:
    return pace.seconds_of_tokens(handle)[0]


def _numbers(handle: Handle) -> float:
    """Operations a token takes: two for each parameter that is multiplied with."""
    return 2.0 * sum(int(p.numel()) for p in handle.model.parameters() if p.dim() > 1)


def _zeros(sites: Sequence[Site]) -> dict[str, Tensor]:
    return {s.path: torch.zeros(s.d_in, s.d_in, dtype=torch.float64, device=s.device) for s in sites}


def _rows_of_piece(handle: Handle, limits: Bounds) -> int:
    """One piece is to be enough for a first look, with what is held out of it."""
    wanted = math.ceil(MARGIN * limits.least / row_length(handle)) + HELD_ROWS
    return min(wanted, rows_at_once(handle))


def _enough(tokens: int, found: float, good: float) -> int:
    """Tokens after which the excess is expected to be good: see the module."""
    width = tokens * (1 - 1 / math.sqrt(max(found, 1.0 + 1e-6)))
    return math.ceil(width / (1 - 1 / math.sqrt(good))) if good > 1 else tokens


def _next_piece(
    handle: Handle, sites: Sequence[Site], sums: Sums, text: Text, clock: _Clock, stop: Callable[[], bool]
) -> bool:
    """Takes the next piece of the text; the first rows of the first one are held out. False behind its end."""
    rows = text.piece(sums.piece, sums.rows, clock.written, stop)
    if not rows:
        return False
    if not sums.held:
        rows = _finer(rows)
        held, rows = rows[: min(HELD_ROWS, len(rows) // 3)], rows[min(HELD_ROWS, len(rows) // 3) :]
        keys = read(handle, sites, held) if held else {}
        sums.held = {path: found[found.any(1)] for path, found in keys.items()}
    sums.piece, sums.left = sums.piece + 1, rows
    return True


def _finer(rows: list[list[int]]) -> list[list[int]]:
    """A text of few rows in more of them, so that some can be held out."""
    while len(rows) < 6 and max(map(len, rows)) > 3:
        rows = [part for row in rows for part in (row[: len(row) // 2], row[len(row) // 2 :]) if part]
    return rows


def _read_some(handle: Handle, sites: Sequence[Site], sums: Sums, stop: Callable[[], bool]) -> None:
    if stop():
        raise Cancelled(
            "Stopped while reading statistics.", "What was read is kept.", "Ask for the edit again to go on."
        )
    batch = BATCH_TOKENS["cuda" if handle.device.type == "cuda" else "cpu"]
    count = max(1, batch // max(map(len, sums.left)))
    rows, sums.left = sums.left[:count], sums.left[count:]
    for path, keys in read(handle, sites, rows).items():
        add(sums.totals[path], keys)
    sums.tokens += sum(map(len, rows))


def _tried(sums: Sums, path: str, shrinkage: float) -> tuple[float, float]:
    """`excess` of the sums as they are; infinite where they have no factor or nothing was held out.

    Raises:
        Diverged: they are not finite.
    """
    second, held = whole(sums.totals[path]) / max(1, sums.tokens), sums.held.get(path)
    if not bool(torch.isfinite(second.diagonal()).all()):
        raise Diverged("The model's activations are not finite.", f"Statistics of {path} were being read.", "")
    if held is None or len(held) < 2:
        return math.inf, math.inf
    third = max(1, len(held) // 3)
    probes = held[:third][:: max(1, third // PROBES)]
    try:
        return excess(second, shrinkage, probes, held[third:])
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return math.inf, math.inf


def _best(sums: Sums, path: str) -> tuple[float, float]:
    """The usual shrinkage, or one under which edits at held-out keys move others much less; the excess that is left."""
    usual = best = USUAL_SHARE, *_tried(sums, path, USUAL_SHARE)
    for direction in (LARGER, SMALLER):
        for share in direction:
            tried = share, *_tried(sums, path, share)
            if tried[2] >= best[2]:
                break
            best = tried
        if best is not usual:  # the other way lies more
            break
    return (best if best[2] < usual[2] - MUCH_LESS else usual)[:2]


def _finished(sums: Sums, path: str, shrinkage: float, found: float) -> Estimate:
    """The sums with what was held out."""
    total, held = sums.totals[path].clone(), sums.held.get(path)
    if held is not None:
        add(total, held)
    tokens = sums.tokens + (0 if held is None else len(held))
    return Estimate(whole(total) / max(1, tokens), tokens, shrinkage, found if math.isfinite(found) else None)


class _Clock:
    """Says how far an estimate is and how long it will take, from the first token that is written."""

    def __init__(
        self, each: tuple[float, float], length: int, sums: Sums, usual: int, report: Callable[[Progress], None]
    ) -> None:
        self.each, self.sums, self.report = each, sums, report
        self.share = each[0] / sum(each)  # of the work on a token that is done once it is written
        self.piece = sums.rows * length  # tokens
        self.target = self._whole_pieces(max(usual, sums.tokens))
        self.start = self.done = self._work(sum(map(len, sums.left)))
        self.began, self.said = time.monotonic(), ""

    def judged(self, worst: float, wanted: int) -> None:
        """The estimate was tried on held-out keys; so many tokens are wanted in all."""
        self.target = self._whole_pieces(max(wanted, self.sums.tokens))
        self.said = f"; text that was held out moves {worst:.2f} times as much"
        self.read()

    def written(self, progress: Progress) -> None:
        """One more token was written in every row of a piece."""
        self._say(self.piece * progress.step / progress.steps, progress.text)

    def read(self) -> None:
        """A batch was read."""
        self._say(sum(map(len, self.sums.left)), READING)

    def _whole_pieces(self, tokens: int) -> int:
        """So many tokens or, since the text comes in pieces, a few more."""
        return self.sums.tokens + -(-(tokens - self.sums.tokens) // self.piece) * self.piece

    def _work(self, waiting: float) -> float:
        """What is done, in tokens, when so many are written and wait to be read."""
        return self.sums.tokens + self.share * waiting

    def _say(self, waiting: float, text: str) -> None:
        self.done = max(self.done, self._work(waiting))  # what is held out is written and not read
        target = max(self.target, math.ceil(self.done))
        gone = self.done - self.start
        rate = (time.monotonic() - self.began) / gone if gone > 0 else sum(self.each)
        left = rate * max(0.0, self.target - self.done)
        self.report(Progress("statistics", int(self.done), target, text=text + self.said, seconds_left=left))


# An estimate that goes on, on disk


def _key(handle: Handle, sites: Sequence[Site], text: Text) -> str:
    paths = hashlib.sha256("\n".join(site.path for site in sites).encode()).hexdigest()[:8]
    return f"{handle.fingerprint}.{text.slug}.{len(sites)}-sites-{paths}"


def _save(path: Path | None, sums: Sums) -> None:
    """Keeps what was read; where the disk refuses, only the time is lost."""
    if path is None or not sums.held:
        return
    tensors = {f"total {name}": total.float() for name, total in sums.totals.items()}
    tensors |= {f"held {name}": keys for name, keys in sums.held.items()}
    about = {"rows": sums.rows, "tokens": sums.tokens, "piece": sums.piece, "left": sums.left}
    with suppress(OSError):
        statfiles.save(path, tensors, {"about": json.dumps(about)})


def _taken_up(sites: Sequence[Site], path: Path | None) -> Sums | None:
    found = None if path is None else statfiles.load(path)
    if found is None or "about" not in found[1]:
        return None
    tensors, about = found[0], json.loads(found[1]["about"])
    try:
        totals = {s.path: tensors[f"total {s.path}"].to(s.device, torch.float64) for s in sites}
        held = {s.path: tensors[f"held {s.path}"].to(s.device) for s in sites}
    except KeyError:
        return None
    if any(totals[s.path].shape != (s.d_in, s.d_in) or not bool(totals[s.path].isfinite().all()) for s in sites):
        return None
    return Sums(about["rows"], totals, held, about["tokens"], about["piece"], about["left"])
