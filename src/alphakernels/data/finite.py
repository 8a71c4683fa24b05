"""Checks that say which columns hold NaN or infinity, before a loss becomes NaN and a run is lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHOWN = 5
CHUNK = 1 << 22  # values looked at a time, so that a check never needs a second array of the data's size


def check_features_finite(x: np.ndarray, names: Sequence[str] | None = None, *, where: str = "the data") -> None:
    """Raises unless every feature is finite.

    Args:
        x: features [N, D].
        names: the D columns' names; their numbers where None.
        where: what the rows are, for the message, such as "segment 'train'".

    Raises:
        ValueError: naming the first columns which hold NaN or infinity, with counts.
    """
    columns = x.shape[1]
    bad = np.zeros(columns, dtype=np.int64)
    rows = max(1, CHUNK // max(1, columns))
    for start in range(0, len(x), rows):
        finite = np.isfinite(x[start : start + rows])
        if not finite.all():
            bad += (~finite).sum(axis=0)
    faulty = np.flatnonzero(bad)
    if faulty.size:
        shown = [f"{names[j] if names is not None else j!s} ({bad[j]})" for j in faulty[:SHOWN]]
        raise ValueError(
            f"features must be finite, got NaN or infinity in {faulty.size} of {columns} columns of {where} "
            f"({len(x)} rows): {', '.join(shown)}{', ...' if faulty.size > SHOWN else ''}; "
            f"fill these values or drop their rows or columns"
        )


def finite_rows(x: np.ndarray) -> np.ndarray:
    """Which rows of x [N, D] are finite throughout: bool [N]."""
    finite = np.empty(len(x), dtype=bool)
    rows = max(1, CHUNK // 16 // max(1, x.shape[1]))
    for start in range(0, len(x), rows):
        np.isfinite(x[start : start + rows]).all(axis=1, out=finite[start : start + rows])
    return finite


def check_label(y: np.ndarray, name: str = "label", *, where: str = "the data") -> None:
    """Raises unless a label [N] holds at least one number, and no infinity. NaN means not observed.

    Raises:
        ValueError: a label that is NaN throughout, or infinite somewhere.
    """
    infinite = int(np.isinf(y).sum())
    if infinite:
        raise ValueError(
            f"{name} must be finite or NaN, got {infinite} infinite values of {len(y)} in {where}; "
            f"drop or clip them (a price of zero in a return is a common cause)"
        )
    if not np.isfinite(y).any():
        raise ValueError(
            f"{name} must be observed somewhere in {where}, got NaN in all {len(y)} rows; move the segment to days "
            f"for which the label is known, or check how the label was joined"
        )
