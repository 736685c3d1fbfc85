"""Second moments factorised: C + shrinkage = L L^T, kept in about half the memory of a square matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-4  # the least that is added to an estimate's diagonal, as a share of its mean
BAND = 1024  # rows of a factor that are kept together


@dataclass(frozen=True)
class Factor:
    """A lower Cholesky factor, L L^T = C, in bands of rows as far as the diagonal: about half of the square."""

    bands: tuple[Tensor, ...]  # [rows of the band, columns up to its last row], fp64

    def __len__(self) -> int:
        return int(self.bands[-1].shape[1])

    def solve(self, columns: Tensor) -> Tensor:
        """C^-1 K for columns K [d_in, n], fp64, by two triangular solves."""
        found = columns.clone()
        for above, diagonal, before, here in self._parts():
            found[here] = torch.linalg.solve_triangular(diagonal, found[here] - above @ found[before], upper=False)
        for above, diagonal, before, here in reversed(self._parts()):
            found[here] = torch.linalg.solve_triangular(diagonal.mT, found[here], upper=True)
            found[before] -= above.mT @ found[here]
        return found

    def whole(self) -> Tensor:
        """L [d_in, d_in]."""
        width = len(self)
        return torch.cat([torch.nn.functional.pad(band, (0, width - band.shape[1])) for band in self.bands])

    def to(self, device: torch.device) -> Factor:
        """The same on a device."""
        return Factor(tuple(band.to(device) for band in self.bands))

    def _parts(self) -> list[tuple[Tensor, Tensor, slice, slice]]:
        """Of each band: what stands before the diagonal block, that block, and the rows of either."""
        found = []
        for band in self.bands:
            begin, end = band.shape[1] - band.shape[0], band.shape[1]
            found.append((band[:, :begin], band[:, begin:], slice(0, begin), slice(begin, end)))
        return found


def bytes_of_factor(width: int) -> int:
    """Bytes of a `Factor` of that width."""
    return 8 * sum(min(BAND, width - i) * min(width, i + BAND) for i in range(0, width, BAND))


def factorise(second: Tensor, shrinkage: float = RIDGE) -> Factor:
    """Lower Cholesky factor (fp64) of C + shrinkage tr(C)/m I."""
    second = second.to(torch.float64, copy=True)  # changed in place: at 14,336 entries a copy is 1.6 GB
    second.diagonal().add_(shrinkage * second.diagonal().mean())
    square, width = torch.linalg.cholesky(second), len(second)
    if width <= BAND:
        return Factor((square,))
    return Factor(tuple(square[i : i + BAND, : min(width, i + BAND)].clone() for i in range(0, width, BAND)))
