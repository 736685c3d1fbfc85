"""Second moments of a site's inputs, C = E[k k^T]: what the model usually stores there. Cached under a readable key."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editcore.anatomy import Site
from editcore.errors import Cancelled
from editcore.handle import Handle
from editcore.records import Progress
from editcore.trace import capture
from editcore.world.facts import load_world
from editcore.world.text import documents

WORLD_TOKENS = 60_000
PER_WIDTH = 10  # tokens wanted per entry of a key, for other models
LEAST_TOKENS = 20_000
RIDGE = 1e-4  # added to the diagonal, as a share of its mean: the estimate may be rank-deficient
SEED = 1


@dataclass(frozen=True)
class Moment:
    """An estimated second moment, factorised once."""

    site: str  # module path
    tokens: int  # key vectors it was estimated from
    source: str  # whose text
    factor: Tensor  # lower Cholesky factor of C + ridge [d_in, d_in], fp64

    def solve(self, keys: Tensor) -> Tensor:
        """C^-1 K for columns K [d_in, n], fp64."""
        return torch.cholesky_solve(keys.double().reshape(keys.shape[0], -1), self.factor)


def factorise(second: Tensor) -> Tensor:
    """Lower Cholesky factor (fp64) of C + ridge on the diagonal."""
    second = second.double()
    ridge = RIDGE * second.diagonal().mean()
    factor: Tensor = torch.linalg.cholesky(second + ridge * torch.eye(len(second)).to(second))
    return factor


def moment(
    handle: Handle,
    site: Site,
    home: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Moment:
    """The second moment at `site`: from memory, from the model's folder, from the cache, or estimated now.

    Raises:
        Cancelled: `stop()` became true.
    """
    key = ("moment", site.path)
    if key not in handle.memory:
        handle.memory[key] = _read(handle, site, home) or _estimate(handle, site, home, report, stop)
    found: Moment = handle.memory[key]
    return found


def ready(handle: Handle, site: Site, home: Path | None) -> bool:
    """True when no estimate is needed before an edit of `site`."""
    return ("moment", site.path) in handle.memory or any(path.exists() for path in _files(handle, site, home))


def _files(handle: Handle, site: Site, home: Path | None) -> list[Path]:
    name = f"{handle.fingerprint}.{site.path}.safetensors"
    shipped = [handle.folder / "statistics" / name] if handle.folder is not None else []
    return shipped + ([home / "statistics" / name] if home is not None else [])


def _read(handle: Handle, site: Site, home: Path | None) -> Moment | None:
    for path in _files(handle, site, home):
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                second = file.get_tensor("second_moment").to(handle.device)
        except (OSError, SafetensorError):
            continue  # absent or damaged: the next file, or a new estimate, takes its place
        if second.shape != (site.d_in, site.d_in) or not bool(torch.isfinite(second).all()):
            continue
        try:
            return Moment(site.path, int(about.get("tokens", 0)), about.get("source", ""), factorise(second))
        except (ValueError, RuntimeError):  # not the moment of anything: no Cholesky factor
            continue
    return None


def _estimate(
    handle: Handle, site: Site, home: Path | None, report: Callable[[Progress], None], stop: Callable[[], bool]
) -> Moment:
    rows, source = _texts(handle, site, report, stop)
    second, tokens = second_moment(handle, site, rows, report, stop)
    if home is not None:
        write(second, tokens, source, home / "statistics" / f"{handle.fingerprint}.{site.path}.safetensors")
    return Moment(site.path, tokens, source, factorise(second))


def write(second: Tensor, tokens: int, source: str, path: Path) -> None:
    """Stores a second moment (fp32) where `moment` looks for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({"second_moment": second.float().cpu().contiguous()}, part, {"tokens": str(tokens), "source": source})
    part.replace(path)


@torch.no_grad()
def second_moment(
    handle: Handle,
    site: Site,
    rows: list[list[int]],
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    size: int = 16,
) -> tuple[Tensor, int]:
    """Mean of k k^T over all tokens of `rows` (fp64 [d_in, d_in]) and the number of tokens; padding is left out."""
    total = torch.zeros(site.d_in, site.d_in, dtype=torch.float64, device=handle.device)
    tokens = 0
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    for step, batch in enumerate(batches):
        if stop():
            raise Cancelled("Stopped while reading statistics.", "Nothing was changed.")
        ids, mask = handle.batch(batch)
        with capture({"k": site.module}, inputs=True, stop=True) as seen:
            handle.model(input_ids=ids, attention_mask=mask, use_cache=False)
        keys = seen["k"].reshape(*ids.shape, -1)[mask.bool()].float()
        total += (keys.T @ keys).double()
        tokens += len(keys)
        report(Progress("statistics", step + 1, len(batches), text="reading what the model usually stores there"))
    return total / max(1, tokens), tokens


def _texts(
    handle: Handle, site: Site, report: Callable[[Progress], None], stop: Callable[[], bool]
) -> tuple[list[list[int]], str]:
    if handle.embedded:
        return world_rows(handle, WORLD_TOKENS), "the world's own text"
    wanted = max(LEAST_TOKENS, PER_WIDTH * site.d_in)
    return own_words(handle, wanted, report, stop), "text the model wrote itself"


def world_rows(handle: Handle, tokens: int) -> list[list[int]]:
    """About `tokens` tokens of the embedded world's documents, cut into rows of up to 128."""
    stream, rows, total = documents(load_world(), random.Random(SEED)), [], 0
    while total < tokens:
        row: list[int] = []
        while len(row) < 128:
            row += handle.tokenizer.encode(" ".join(map(str, next(stream))), add_special_tokens=False)
        rows.append(row[:128])
        total += len(rows[-1])
    return rows


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
    length = min(128, handle.context)
    count = -(-tokens // length)
    rows: list[list[int]] = []
    with torch.random.fork_rng(devices=[handle.device] if handle.device.type == "cuda" else []):
        torch.manual_seed(SEED)
        while len(rows) < count:
            if stop():
                raise Cancelled("Stopped while the model wrote its statistics text.", "Nothing was changed.")
            ids = torch.full((min(32, count - len(rows)), 1), start, device=handle.device)
            out = handle.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=length - 1,
                min_new_tokens=length - 1, pad_token_id=handle.pad,
            )  # fmt: skip
            rows += out.tolist()
            report(Progress("statistics", len(rows), count, text="the model writes the text it is measured on"))
    return rows


def context_seed(handle: Handle) -> int:
    """A seed that depends on nothing but the model."""
    return int.from_bytes(hashlib.sha256(handle.fingerprint.encode()).digest()[:4], "big")
