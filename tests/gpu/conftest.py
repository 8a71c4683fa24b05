"""Tests of what only a GPU can show. The ops' contract runs on it too: `pytest tests/ops -k triton`, of the same cases as on the CPU."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def device():
    """The GPU, computing float32 in float32."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and a CUDA build of torch")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield torch.device("cuda", torch.cuda.current_device())
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.cuda.empty_cache()
