"""Work cut in pieces, on as many threads as torch has: NumPy lets go of the interpreter while it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch


def on_threads(work: Callable[[int], None], pieces: Iterable[int]) -> None:
    """Calls work(piece) for every piece; what one does must not depend on another."""
    threads = torch.get_num_threads()
    if threads == 1:
        for piece in pieces:
            work(piece)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, pieces):
            pass
