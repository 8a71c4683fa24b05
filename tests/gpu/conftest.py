"""Tests of what only a GPU can show. The ops' contract runs on it too: `pytest tests/ops -k triton`, of the same cases as on the CPU."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """The GPU, computing float32 in float32."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and a CUDA build of torch")
    for products in (torch.backends.cuda.matmul, torch.backends.cudnn.rnn, torch.backends.cudnn.conv):
        monkeypatch.setattr(products, "fp32_precision", "ieee")
    yield torch.device("cuda", torch.cuda.current_device())
    torch.cuda.empty_cache()
