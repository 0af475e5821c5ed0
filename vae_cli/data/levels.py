"""Which whole numbers are grey levels, and which are values of their own. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHANNELS = (1, 3, 4)  # how many a picture has


def levels_of(dtype: np.dtype, shape: Sequence[int], low: float, high: float) -> int | None:
    """Return the number of grey levels of examples [*shape] from `low` to `high`; None where values are their own.

    Bytes are grey levels, in any shape. Other whole numbers are grey levels where they are 0 … 255 and examples are
    shaped like pictures; a table of them (ages, counts, codes) holds values of its own. 0 and 1 are 0 and 1.
    """
    if dtype.kind not in "bui" or low < 0:
        return None
    if high <= 1:
        return 2
    if dtype == np.uint8:
        return 256
    return int(high) + 1 if high <= 255 and like_a_picture(shape) else None


def like_a_picture(shape: Sequence[int]) -> bool:
    """Whether examples are [H, W] or [C, H, W], with sides of more than one."""
    return (len(shape) == 2 or (len(shape) == 3 and shape[0] in CHANNELS)) and min(shape[-2:]) > 1


def is_whole(dtype: np.dtype, levels: int | None) -> bool:
    """Whether examples are whole numbers of which it must be said how they were taken."""
    return dtype.kind in "ui" and dtype != np.uint8 and levels != 2
