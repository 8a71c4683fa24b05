"""No training step asks the host for a number or sends it one: on a GPU it would wait there, and a CUDA graph cannot hold it. Tensors
of the meta device stand in for a GPU's."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alphakernels import models
from alphakernels.ops import _backend, _library
from alphakernels.ops.recurrent import cuda

ROWS, FEATURES, STEPS = 24, 3, 6
PANEL = (ROWS, FEATURES * STEPS)
NETWORKS = {
    "TabNet": (lambda: models.TabNetFinetune(8, 1, models.TabNet(inp_dim=18, out_dim=8, n_d=8, n_a=8, vbs=8)), [PANEL, PANEL]),
    "GRU": (lambda: models.GRUNet(FEATURES, 16, dropout=0.3), [PANEL]),
    "LSTM": (lambda: models.LSTMNet(FEATURES, 16, dropout=0.3), [PANEL]),
    "ALSTM": (lambda: models.ALSTMNet(FEATURES, 16, dropout=0.3), [PANEL]),
    "LocalFormer": (lambda: models.LocalformerNet(FEATURES, 16, 2, 2, 0.3), [PANEL]),
    "Transformer": (lambda: models.TransformerNet(FEATURES, 16, 2, 1, 0.3), [PANEL]),
    "SFM": (lambda: models.SFMNet(FEATURES, 16, freq_dim=4), [PANEL]),
    "SFM with dropout": (lambda: models.SFMNet(FEATURES, 16, freq_dim=4, dropout_W=0.2, dropout_U=0.2), [PANEL]),
    "GATs": (lambda: models.GATsNet(FEATURES, 16), [PANEL]),
    "HIST": (lambda: models.HISTNet(FEATURES, 16), [PANEL, (ROWS, 5)]),
    "MLP": (lambda: models.MLPNet(18, layers=(8,)), [PANEL]),
}


class HostTraffic(TorchDispatchMode):
    """Collects the operators whose result the host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        name = operator.__name__.split(".")[0]
        of_bools = name.startswith("index") and any(t.dtype == torch.bool for t in tensors[1:])
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2") or of_bools:
            self.found.append(name)
            raise AssertionError(f"{name} waits for the device")
        out = operator(*args, **(kwargs or {}))
        devices = {t.device.type for t in (*tensors, *tree_leaves(out)) if isinstance(t, torch.Tensor)}
        if devices == {"cpu", "meta"}:
            self.found.append(f"{name} between the host and the device")
        return out


@pytest.fixture
def on_meta(monkeypatch):
    """The kernels of a GPU are chosen for tensors of the meta device, by their fake implementations."""
    kernel, autocast, made = _backend._kernel, torch.is_autocast_enabled, torch.tensor
    monkeypatch.setattr(_library, "compiled_cuda", lambda: _library.Compiled(None, None, None))
    monkeypatch.setattr(cuda, "_limit", lambda *a: None)
    monkeypatch.setattr(_backend, "_kernel", lambda name, device, dtype, asked: kernel(name, "cuda", dtype, asked))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": False if kind == "meta" else autocast(kind))
    sent = []

    def tensor(data, **options):
        if torch.device(options.get("device") or "cpu").type == "meta":
            sent.append(f"torch.tensor({data!r}) is sent to the device")
        return made(data, **options)

    monkeypatch.setattr(torch, "tensor", tensor)
    _backend._choose.cache_clear()
    yield sent
    _backend._choose.cache_clear()


@pytest.mark.skipif(not _library.has_triton(), reason="triton is not installed")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_stays_on_the_device(name, on_meta) -> None:
    make, shapes = NETWORKS[name]
    network = make().to("meta").train()
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    with HostTraffic() as traffic:
        out = network(*inputs)
        (out[0] if isinstance(out, tuple) else out).square().mean().backward()
    assert traffic.found + on_meta == []
    assert any(p.grad is not None for p in network.parameters())
