"""MLPNet against Qlib's Net: initial weights, outputs, gradients, running statistics, all bitwise."""

from __future__ import annotations

import pytest
import torch

from alphakernels.models import MLPNet

qlib = pytest.importorskip("qlib.contrib.model.pytorch_nn")

SIZES = {
    "qlib's defaults": dict(input_dim=158),
    "deep": dict(input_dim=11, output_dim=2, layers=(16, 8, 4)),
    "SiLU": dict(input_dim=360, layers=(32,), act="SiLU"),
    "no hidden layer": dict(input_dim=5, layers=()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SIZES)
def test_bitwise_equal(name, training, dtype):
    found = []
    for make in (qlib.Net, MLPNet):
        torch.manual_seed(3)
        network = make(**SIZES[name]).to(dtype).train(training)
        x = torch.randn(50, SIZES[name]["input_dim"], dtype=dtype, requires_grad=True)
        for _ in range(2):
            y = network(x)
            (y * torch.randn(y.shape)).sum().backward()
        parameters = {f"gradient of {n}": p.grad for n, p in network.named_parameters()}
        found.append({"y": y, "x": x.grad} | parameters | network.state_dict())
    theirs, ours = found
    assert list(ours) == list(theirs)
    for what, t in theirs.items():
        assert torch.equal(ours[what], t), what
