"""DistributedDataParallel: two processes train as one, agree on every value, and one of them writes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from alphakernels.training import load_tensors

RUN = """
import sys
from types import SimpleNamespace
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from alphakernels.training import Trainer, mse, save_tensors

torch.set_num_threads(1)
folder, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

class Rows:
    def __init__(self, rows):
        generator = torch.Generator().manual_seed(rows)
        self.x = torch.randn(rows, 4, generator=generator)
        self.y = self.x.sum(1)
        self.mine = np.array_split(np.arange(rows), ranks)[rank]
    def __len__(self):
        return 1
    def __iter__(self):
        yield SimpleNamespace(x=self.x[self.mine], y=self.y[self.mine], rows=self.mine)

torch.manual_seed(0)
module = inner = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
if ranks > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    module = DistributedDataParallel(inner)
result = Trainer(epochs=4, lr=0.05, progress=False, checkpoint=f"{folder}/checkpoint{ranks}").fit(
    module, lambda m, b: mse(m(b.x).squeeze(-1), b.y), Rows(40), {"valid": Rows(13)})
save_tensors(f"{folder}/result{ranks}.{rank}", inner.state_dict(), {"valid": [r["valid"] for r in result.history]})
if ranks > 1:
    dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_ranks_train_as_one(tmp_path):
    def start(rank, ranks):
        return subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path), str(rank), str(ranks)],
            stderr=subprocess.PIPE,
            text=True,
        )

    for process in [start(0, 1), start(0, 2), start(1, 2)]:
        assert process.wait(timeout=120) == 0, process.stderr.read()
    one, alone = load_tensors(tmp_path / "result1.0")
    first, first_values = load_tensors(tmp_path / "result2.0")
    second, second_values = load_tensors(tmp_path / "result2.1")
    assert first_values == second_values
    assert first_values["valid"] == pytest.approx(alone["valid"], rel=1e-4)
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name
        torch.testing.assert_close(one[name], tensor, rtol=1e-4, atol=1e-5)
    saved, _ = load_tensors(tmp_path / "checkpoint2")
    assert "module.0.weight" in saved
