"""Second moments of a site's inputs, C = E[k k^T]: what the model usually stores there. Cached under a readable key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from editcore import corpus, statfiles
from editcore.anatomy import Site
from editcore.errors import is_out_of_memory
from editcore.factors import RIDGE, Factor, factorise
from editcore.handle import Handle
from editcore.moments import GOOD, USUAL_SHARE, Bounds, Estimate, bounds, estimate, seconds_expected
from editcore.records import Progress


@dataclass(frozen=True)
class Moment:
    """An estimated second moment, factorised once."""

    site: str  # module path
    tokens: int  # key vectors it was estimated from
    source: str  # whose text
    factor: Factor  # of C + shrinkage
    shrinkage: float = RIDGE  # share of the mean eigenvalue added to the diagonal
    excess: float | None = None  # how much more held-out keys are moved than read ones (see `moments`); None: unknown

    def solve(self, keys: Tensor) -> Tensor:
        """C^-1 K for columns K [d_in, n], fp64."""
        return self.factor.solve(keys.double().reshape(keys.shape[0], -1))

    @property
    def caution(self) -> str:
        """What a person should know before trusting it; empty when it is as good as wanted or was never tried."""
        deficient = self.tokens < len(self.factor)  # fewer keys than directions
        if self.excess is None or (self.excess <= GOOD and not deficient):
            return ""
        shrunk = f" and shrunk by {self.shrinkage:g}" if self.shrinkage > USUAL_SHARE else ""
        return (
            f"The statistics of {self.site} rest on {self.tokens:,} tokens{shrunk}: "
            f"unrelated text may move {self.excess:.1f} times as much as expected."
        )


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
    """The eigenvectors of C, before it was shrunk, whose eigenvalue is below `cut`, times the mean when `relative`."""
    key = ("spectrum", found.site)
    if key not in handle.memory:
        root = found.factor.whole()
        values, vectors = torch.linalg.eigh(root @ root.T)
        handle.memory[key] = values - found.shrinkage / (1 + found.shrinkage) * values.mean(), vectors
    values, vectors = handle.memory[key]  # in rising order: what is used stands behind what is not
    size = int((values < cut * (values.mean() if relative else 1.0)).sum())
    return NullSpace(vectors[:, size:], size)


def decomposed(handle: Handle, site: Site) -> bool:
    """True when `null_space` has the eigenvectors of this site's second moment."""
    return ("spectrum", site.path) in handle.memory


def moment(
    handle: Handle,
    site: Site,
    home: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Moment:
    """`moments` of one site."""
    return moments(handle, [site], home, report, stop)[site.path]


def moments(
    handle: Handle,
    sites: Sequence[Site],
    home: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Moment]:
    """The second moment at each site: from memory, the model's folder or the cache; the rest estimated together.

    Raises:
        BadRequest: the stored text cannot be read any more.
        Cancelled: `stop()` became true; asked again, the estimate goes on where it was.
        Diverged: the model's activations are not finite.
    """
    missing = [site for site in sites if ("moment", site.path) not in handle.memory]
    for site in missing:
        if (found := _kept(handle, site, home)) is not None:
            handle.memory["moment", site.path] = found
    missing = [site for site in missing if ("moment", site.path) not in handle.memory]
    if missing:
        limits = _limits(handle, missing)
        text = corpus.text_of(handle, limits.most, home)
        for path, made in estimate(handle, missing, text, limits, home, report, stop).items():
            if home is not None:
                write(home, handle, path, made, text)
            handle.memory["moment", path] = _factorised(path, made, text.source)
    return {site.path: handle.memory["moment", site.path] for site in sites}


def ready(handle: Handle, site: Site, home: Path | None) -> bool:
    """True when no estimate is needed before an edit of `site`."""
    return ("moment", site.path) in handle.memory or bool(_files(handle, site, home))


def seconds_to_wait(handle: Handle, sites: Sequence[Site], home: Path | None) -> float:
    """How long an estimate of these sites is expected to take."""
    return seconds_expected(handle, sites, _limits(handle, sites), corpus.written_share(handle, home))


def write(home: Path, handle: Handle, path: str, made: Estimate, text: corpus.Text) -> Path:
    """Stores an estimate (fp32) where `moments` looks for it."""
    file = statfiles.folder_in(home) / statfiles.name(handle.fingerprint, path, text.slug, made.tokens)
    about = {
        "model": handle.name, "fingerprint": handle.fingerprint, "module": path, "source": text.source,
        "tokens": str(made.tokens), "dtype": str(handle.dtype).removeprefix("torch."),
        "shrinkage": repr(made.shrinkage), "excess": "" if made.excess is None else repr(made.excess),
    }  # fmt: skip
    statfiles.save(file, {"second_moment": made.second.float()}, about)
    return file


def _limits(handle: Handle, sites: Sequence[Site]) -> Bounds:
    """The embedded model's own text is there to be read: all of it is."""
    if handle.embedded:
        return Bounds(corpus.WORLD_TOKENS, corpus.WORLD_TOKENS, corpus.WORLD_TOKENS)
    return bounds(sites)


def _files(handle: Handle, site: Site, home: Path | None) -> list[Path]:
    """What comes with a model is trusted, whatever it was read on; in the data folder it has to be the text in use."""
    of, found = (handle.fingerprint, site.path), []
    if handle.folder is not None:
        found += [*statfiles.found(handle.folder, *of, None), *statfiles.unnamed(handle.folder, *of)]
    if home is not None:
        slug = corpus.slug_of(handle, home)
        found += statfiles.found(home, *of, slug)
        found += [] if slug.startswith("stored") else statfiles.unnamed(home, *of)
    return found


def _kept(handle: Handle, site: Site, home: Path | None) -> Moment | None:
    """From a file, unless none is whole: the next file, or a new estimate, takes a damaged one's place."""
    for file in _files(handle, site, home):
        tensors, about = statfiles.load(file) or ({}, {})
        said = about.get("fingerprint", handle.fingerprint), about.get("module", site.path)
        if said != (handle.fingerprint, site.path) or "second_moment" not in tensors:
            continue
        second = tensors.pop("second_moment").to(site.device)  # where it is looked at much sooner, if that is a GPU
        if not statfiles.is_moment(second, site.d_in):
            continue
        try:
            tokens, shrinkage = int(about.get("tokens", 0)), float(about.get("shrinkage", RIDGE))
            excess = float(about["excess"]) if about.get("excess") else None
            made = Estimate(second, tokens, shrinkage, excess)
            return _factorised(site.path, made, about.get("source", ""))
        except (ValueError, RuntimeError) as error:  # not the moment of anything: no Cholesky factor
            if is_out_of_memory(error):
                raise
            continue
    return None


def _factorised(path: str, made: Estimate, source: str) -> Moment:
    factor = factorise(made.second, made.shrinkage)
    return Moment(path, made.tokens, source, factor, made.shrinkage, made.excess)
