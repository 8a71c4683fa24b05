"""Tests of what only a GPU can show. The ops' contract runs on it too: `pytest tests/ops -k triton`, of the same cases as on the CPU."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def device():
    """The GPU, computing float32 in float32."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and a CUDA build of torch")
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.rnn, torch.backends.cudnn.conv)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    yield torch.device("cuda", torch.cuda.current_device())
    for switch, value in zip(switches, before, strict=True):
        switch.fp32_precision = value
    torch.cuda.empty_cache()
