"""How sure a share of few cases is. Knows counts; standard library only."""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval


def wilson(right: float, of: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): sensible for few cases and near 0 and 1.

    With p = right/of, n = of: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        right: how many of them were right; a fraction is fine where each case is itself a mean.
        of: independent cases.
        z: standard normal quantile; the default gives 95 %.

    Raises:
        ValueError: there is no case, or more are right than there are.
    """
    if of < 1 or not 0 <= right <= of:
        raise ValueError(f"{right} of {of} is no share")
    share = right / of
    middle = share + z * z / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    return 0.0 if right == 0 else (middle - half) / scale, 1.0 if right == of else (middle + half) / scale
