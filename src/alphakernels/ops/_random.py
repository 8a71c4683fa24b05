"""Philox 4x32-10 (Salmon et al., SC 2011) in plain PyTorch: the counter-based generator behind dropout inside a kernel.

The bits of an element depend on the seed and on the element's index alone: forward and backward draw the same mask without keeping
it, any number of threads draws the same, and so does this file. csrc/common/philox.h is its twin.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def draw_seed(device: torch.device | str = "cpu") -> Tensor:
    """A seed from torch's own generator of the device where it is used: `torch.manual_seed` governs it. Kernels read it there, so that a
    CUDA graph draws another at each replay."""
    return torch.randint(2**62, (), dtype=torch.int64, device=device)


def philox(seed: Tensor, counter: Tensor) -> Tensor:
    """Four 32-bit words, held in int64, for each 64-bit counter: [*counter.shape, 4]."""
    c0, c1 = counter & _LOW, (counter >> 32) & _LOW
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2  # modulo 2^64, which is all 64 bits of the products
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return torch.stack([c0, c1, c2, c3], -1)


def dropout_factors(seed: Tensor, stream: int, shape: tuple[int, int], p: float, like: Tensor) -> Tensor:
    """[rows, columns] of 0 or 1 / (1 - p), in `like`'s dtype and on its device. Row r of stream s takes its columns from the
    counters (s << 48) + r * ceil(columns / 4) onwards, four columns a counter; an element is kept where its word is at least
    p * 2^32."""
    rows, columns = shape
    per_row = (columns + 3) // 4
    counter = (stream << 48) + torch.arange(rows * per_row, device=like.device)
    words = philox(seed.to(like.device), counter).view(rows, per_row * 4)[:, :columns]
    return (words >= round(p * 2**32)).to(like.dtype) * (1 / (1 - p) if p < 1 else 0.0)
