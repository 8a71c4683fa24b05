"""Time per row from a thousand to a million rows: flat, or something is not linear."""

from __future__ import annotations

import pytest
import torch

from alphakernels import ops


@pytest.mark.parametrize("rows", [1_000, 10_000, 100_000, 1_000_000])
def test_sparsemax_per_row(compare, device, rows) -> None:
    x = torch.randn(rows, 158, device=device)
    row = compare(
        f"sparsemax [{rows}, 158] forward, scale",
        lambda: ops.sparsemax(x),
        {"torch.softmax": lambda: torch.softmax(x, -1)},
        moved=2 * 4 * x.numel(),
        size=rows,
    )
    row.note = f"{row.ours_ms / rows * 1e6:.0f} ns a row"
