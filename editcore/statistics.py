"""Second moments of a site's inputs, C = E[k k^T]: what the model usually stores there. Cached under a readable key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editcore import corpus
from editcore.anatomy import Site
from editcore.errors import Cancelled, is_out_of_memory
from editcore.handle import Handle
from editcore.records import Progress
from editcore.trace import capture

PER_WIDTH = 10  # tokens wanted per entry of a key, for other models
LEAST_TOKENS = 20_000
RIDGE = 1e-4  # added to the diagonal, as a share of its mean: the estimate may be rank-deficient


@dataclass(frozen=True)
class Moment:
    """An estimated second moment, factorised once."""

    site: str  # module path
    tokens: int  # key vectors it was estimated from
    source: str  # whose text
    factor: Tensor  # lower Cholesky factor of C + ridge [d_in, d_in], fp64

    def solve(self, keys: Tensor) -> Tensor:
        """C^-1 K for columns K [d_in, n], fp64. Two triangular solves: `cholesky_solve` would copy the factor first."""
        columns = keys.double().reshape(keys.shape[0], -1)
        half = torch.linalg.solve_triangular(self.factor, columns, upper=False)
        found: Tensor = torch.linalg.solve_triangular(self.factor.mT, half, upper=True)
        return found


@dataclass(frozen=True)
class NullSpace:
    """Directions a matrix's inputs hardly ever take."""

    used: Tensor  # eigenvectors that are not in it [d_in, used], fp64
    size: int  # its dimension

    def project(self, keys: Tensor) -> Tensor:
        """P K for columns K [d_in, n], fp64."""
        keys = keys.double()
        return keys - self.used @ (self.used.T @ keys)


def null_space(handle: Handle, found: Moment, cut: float, relative: bool) -> NullSpace:
    """The eigenvectors of C whose eigenvalue is below `cut`, times the mean eigenvalue when `relative`."""
    key = ("spectrum", found.site)
    if key not in handle.memory:
        handle.memory[key] = torch.linalg.eigh(found.factor @ found.factor.T)
    values, vectors = handle.memory[key]  # in rising order: what is used stands behind what is not
    size = int((values < cut * (values.mean() if relative else 1.0)).sum())
    return NullSpace(vectors[:, size:], size)


def factorise(second: Tensor) -> Tensor:
    """Lower Cholesky factor (fp64) of C + ridge on the diagonal."""
    second = second.to(torch.float64, copy=True)  # changed in place: at 14,336 entries a copy is 1.6 GB
    second.diagonal().add_(RIDGE * second.diagonal().mean())
    factor: Tensor = torch.linalg.cholesky(second)
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


def tokens_wanted(site: Site) -> int:
    """How many key vectors an estimate at this site is made from."""
    return max(LEAST_TOKENS, PER_WIDTH * site.d_in)


def ready(handle: Handle, site: Site, home: Path | None) -> bool:
    """True when no estimate is needed before an edit of `site`."""
    return ("moment", site.path) in handle.memory or any(path.exists() for path in _files(handle, site, home))


def _files(handle: Handle, site: Site, home: Path | None) -> list[Path]:
    return [path_in(folder, handle, site) for folder in (handle.folder, home) if folder is not None]


def path_in(folder: Path, handle: Handle, site: Site) -> Path:
    """Where a model's folder, or the data folder, keeps the second moment of a site."""
    return folder / "statistics" / f"{handle.fingerprint}.{site.path}.safetensors"


def _read(handle: Handle, site: Site, home: Path | None) -> Moment | None:
    for path in _files(handle, site, home):
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                second = file.get_tensor("second_moment").to(site.device)
        except (OSError, SafetensorError):
            continue  # absent or damaged: the next file, or a new estimate, takes its place
        if second.shape != (site.d_in, site.d_in) or not bool(torch.isfinite(second).all()):
            continue
        try:
            return Moment(site.path, int(about.get("tokens", 0)), about.get("source", ""), factorise(second))
        except (ValueError, RuntimeError) as error:  # not the moment of anything: no Cholesky factor
            if is_out_of_memory(error):
                raise
            continue
    return None


def _estimate(
    handle: Handle, site: Site, home: Path | None, report: Callable[[Progress], None], stop: Callable[[], bool]
) -> Moment:
    rows, source = corpus.rows(handle, tokens_wanted(site), home, report, stop)
    second, tokens = second_moment(handle, site, rows, report, stop)
    if home is not None:
        write(second, tokens, source, path_in(home, handle, site))
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
    total = torch.zeros(site.d_in, site.d_in, dtype=torch.float64, device=site.device)
    tokens = 0
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    for step, batch in enumerate(batches):
        if stop():
            raise Cancelled("Stopped while reading statistics.", "Nothing was changed.")
        ids, mask = handle.batch(batch)
        with capture({"k": site.module}, inputs=True, stop=True) as seen:
            handle.model(input_ids=ids, attention_mask=mask, use_cache=False)
        keys = seen["k"].reshape(*ids.shape, -1)[mask.bool().to(site.device)].float()
        total += (keys.T @ keys).double()
        tokens += len(keys)
        report(Progress("statistics", step + 1, len(batches), text="reading what the model usually stores there"))
    return total / max(1, tokens), tokens
