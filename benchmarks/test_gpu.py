"""The rows of the GPU table, on a machine with a GPU (--device cuda): kernels against the bandwidth, stacks against cuDNN, whole training
steps, captured as `Trainer` captures them, against Qlib's network or plain PyTorch, eager and compiled."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from alphakernels import explain, models, nn, ops
from alphakernels.testing.peers import peer_of
from alphakernels.training.capture import CudaGraphs

FEATURES, STEPS, HIDDEN = 6, 60, 64
GATES = {"GRU": 3, "LSTM": 4}
HALVES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
BANDWIDTH = "torch's copy"  # the peer of a row that is held to the copy bandwidth


@pytest.fixture(autouse=True)
def gpu(device):
    if device.type != "cuda":
        pytest.skip("the rows of the GPU table: --device cuda")


def short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def gradients(function, inputs, grad):
    """Forward and backward."""
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def copying(moved: float, like: torch.Tensor):
    """A copy that moves as many bytes."""
    source = torch.randn(int(moved) // 2 // like.element_size(), device=like.device, dtype=like.dtype)
    target = torch.empty_like(source)
    return {BANDWIDTH: lambda: target.copy_(source)}


@HALVES
@pytest.mark.parametrize("what", ["forward", "fwd + bwd"])
def test_sparsemax(compare, device, dtype, what) -> None:
    rows = 1 << 20
    x = torch.randn(rows, 158, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)

    def work(f):
        return (lambda: f(x.detach())) if what == "forward" else gradients(f, [x], grad)

    moved = (2 if what == "forward" else 5) * x.numel() * x.element_size()
    peers = {**copying(moved, x), "torch.softmax": work(lambda x: torch.softmax(x, -1))}
    compare(f"sparsemax [{rows}, 158] {short(dtype)} {what}", work(ops.sparsemax), peers, moved=moved, targets={BANDWIDTH: 0.7})


@HALVES
def test_glu_block(compare, device, dtype) -> None:
    rows, columns, vbs, scale = 1 << 18, 256, 2048, math.sqrt(0.5)
    u, residual = torch.randn(rows, columns, device=device, dtype=dtype), torch.randn(rows, columns // 2, device=device, dtype=dtype)
    weight, bias = torch.randn(columns, device=device, dtype=dtype), torch.randn(columns, device=device, dtype=dtype)
    inputs = [t.requires_grad_() for t in (u, residual, weight, bias)]
    running = torch.zeros(columns, device=device, dtype=dtype), torch.ones(columns, device=device, dtype=dtype)
    grad = torch.randn_like(residual)

    def ours(u, residual, weight, bias):
        return ops.glu_block(u, weight, bias, *running, virtual_batch_size=vbs, residual=residual, scale=scale)

    def chain(u, residual, weight, bias):
        v = torch.cat([F.batch_norm(c, *running, weight, bias, True, 0.01, 1e-5) for c in u.split(vbs)])
        value, gate = v.chunk(2, 1)
        return (residual + value * torch.sigmoid(gate)) * scale

    def whole(u, residual, weight, bias):  # of equal batches, without a graph of 128 norms, which takes minutes to compile
        batches = u.view(-1, vbs, columns)
        var, mean = torch.var_mean(batches, 1, correction=0, keepdim=True)
        value, gate = ((batches - mean) * torch.rsqrt(var + 1e-5) * weight + bias).view_as(u).chunk(2, 1)
        return (residual + value * torch.sigmoid(gate)) * scale

    compiled = {"torch.compile": gradients(torch.compile(whole, dynamic=False), inputs, grad)} if dtype == torch.float32 else {}
    # u twice and the residual read, the output written; backward: the gradient and u twice, both gradients written.
    moved = u.numel() * u.element_size() * (2 + 1 + 3 + 1.5)
    compare(
        f"GLU block [{rows}, {columns}] {short(dtype)} fwd + bwd",
        gradients(ours, inputs, grad),
        {**copying(moved, u), "eager chain": gradients(chain, inputs, grad), **compiled},
        moved=moved,
        targets={BANDWIDTH: 0.7},
    )


@HALVES
def test_attention_pool(compare, device, dtype) -> None:
    batch, attention = 1 << 16, HIDDEN // 2
    h = torch.randn(batch, STEPS, HIDDEN, device=device, dtype=dtype)
    weight, bias, score = (torch.randn(shape, device=device, dtype=dtype) / 8 for shape in ((attention, HIDDEN), (attention,), (attention,)))
    inputs = [t.requires_grad_() for t in (h, weight, bias, score)]
    grad = torch.randn(batch, 2 * HIDDEN, device=device, dtype=dtype)

    def plain(h, weight, bias, score):
        weights = torch.softmax(torch.tanh(F.linear(h, weight, bias)) @ score, 1)
        return torch.cat([h[:, -1], (weights[:, None] @ h).squeeze(1)], 1)

    compiled = {"torch.compile": gradients(torch.compile(plain, dynamic=False), inputs, grad)} if dtype == torch.float32 else {}
    moved = 3 * h.numel() * h.element_size()
    compare(
        f"attention pooling [{batch}, {STEPS}, {HIDDEN}] {short(dtype)} fwd + bwd",
        gradients(ops.attention_pool, inputs, grad),
        {**copying(moved, h), "torch": gradients(plain, inputs, grad), **compiled},
        moved=moved,
        flops=2 * 3 * batch * STEPS * HIDDEN * attention,
        targets={BANDWIDTH: 0.7},
        dtype=dtype,
    )


def flash(cell: str, x: torch.Tensor, layers: int):
    """flashrnn on a stack of one head, in bf16, which is what it is made for: the inputs' products by cuBLAS, as its authors leave them."""
    flashrnn = pytest.importorskip("flashrnn").flashrnn
    gates = 4  # its GRU has a fourth for the candidate's own bias
    batch, steps, width = x.shape
    options = {"device": x.device, "dtype": torch.bfloat16, "requires_grad": True}
    weights = [torch.randn(gates * HIDDEN, width if i == 0 else HIDDEN, **options) for i in range(layers)]
    recurrent = [torch.randn(gates, 1, HIDDEN, HIDDEN, **options) for _ in range(layers)]
    biases = [torch.randn(gates, 1, HIDDEN, **options) for _ in range(layers)]

    def run():
        out = x.bfloat16()
        for w, r, b in zip(weights, recurrent, biases, strict=True):
            states, _ = flashrnn(F.linear(out, w).view(batch, steps, gates, 1, HIDDEN), r, b, function=cell.lower(), backend="cuda_fused")
            out = states[0].reshape(batch, steps, HIDDEN)
        return torch.autograd.grad(out.sum(), [*weights, *recurrent, *biases])

    return run


@HALVES
@pytest.mark.parametrize("batch", [800, 3200, 8192])
@pytest.mark.parametrize("cell", GATES)
def test_stack(compare, device, cell, batch, dtype) -> None:
    """cuDNN's products are TF32 by torch's own default; so are ours where it says so."""
    ours = getattr(nn, cell)(FEATURES, HIDDEN, 2, batch_first=True).to(device, dtype)
    theirs = getattr(torch.nn, cell)(FEATURES, HIDDEN, 2, batch_first=True).to(device, dtype)
    x = torch.randn(batch, STEPS, FEATURES, device=device, dtype=dtype)
    grad = torch.randn(batch, STEPS, HIDDEN, device=device, dtype=dtype)

    def work(network):
        parameters = list(network.parameters())
        return lambda: torch.autograd.grad(network(x)[0], parameters, grad)

    assert explain(ours, x).kernel == "cuda", "cuDNN would be measured against itself"
    peers = {"cuDNN": work(theirs)}
    if dtype == torch.bfloat16:
        try:
            peers["flashrnn"] = flash(cell, x, 2)
        except pytest.skip.Exception:  # it is not here
            pass
    flops = 6 * batch * STEPS * GATES[cell] * HIDDEN * (FEATURES + 3 * HIDDEN)
    targets = {"cuDNN": 2.0, **({"flashrnn": 1.0} if "flashrnn" in peers else {})}
    compare(f"{cell} stack B {batch} T {STEPS} {short(dtype)} fwd + bwd", work(ours), peers, flops=flops, targets=targets, dtype=dtype)


def stepper(given, y):
    """Work on a network: a training step as `Trainer` runs it."""

    def work(network):
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True, capturable=True)
        network.train()

        def step():
            optimizer.zero_grad(set_to_none=True)
            out = network(*given)
            loss = ((out[0] if isinstance(out, tuple) else out) - y).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_value_(network.parameters(), 3.0)
            optimizer.step()
            return loss.detach()

        return step

    return work


def captured(step, device):
    """The step as a CUDA graph."""
    graphs = CudaGraphs(device)
    for _ in range(3):
        graphs.warm(step)
    replay = graphs.capture(step)
    replay.uncaptured = step
    return replay


def encoder(cls):
    return lambda: cls(FEATURES, HIDDEN, 2, 2, 0.0)


# title: ours, Qlib's file, class and arguments, batch sizes, ratio to reach
STEP_ROWS = {
    "TabNet": (
        lambda: models.TabNet(158, 64, relax=1.3, vbs=2048), "tabnet", "TabNet", {"inp_dim": 158, "out_dim": 64, "relax": 1.3, "vbs": 2048},
        (4096, 16384), 4.0,
    ),
    "LocalFormer": (encoder(models.LocalformerNet), "localformer", "Transformer", (FEATURES, HIDDEN, 2, 2, 0.0), (1024, 4096), 2.0),
    "Transformer": (encoder(models.TransformerNet), "transformer", "Transformer", (FEATURES, HIDDEN, 2, 2, 0.0), (1024, 4096), 2.0),
    "ALSTM (GRU)": (models.ALSTMNet, "alstm", "ALSTMModel", {}, (800, 3200), 3.0),
    "GRU": (models.GRUNet, "gru", "GRUModel", {}, (800, 3200), 3.0),
    "LSTM": (models.LSTMNet, "lstm", "LSTMModel", {}, (800, 3200), 3.0),
    "SFM": (lambda: models.SFMNet(freq_dim=25), "sfm", "SFM_Model", {"freq_dim": 25}, (1000, 4000), 30.0),
}  # fmt: skip


def prepared(name: str, batch: int, device):
    """(our network, its peer, the work of a training step) of a row."""
    make, file, cls, options, *_ = STEP_ROWS[name]
    torch.manual_seed(0)
    ours = make().to(device)
    args, options = (options, {}) if isinstance(options, tuple) else ((), options)
    if name == "SFM":
        options = {**options, "device": device}
    peer = peer_of(ours, f"pytorch_{file}", cls, *args, **options)
    x = torch.randn(batch, 158 if name == "TabNet" else FEATURES * STEPS, device=device)
    y = torch.randn((batch, 64) if name == "TabNet" else (batch,), device=device)
    return ours, peer, stepper((x, torch.ones_like(x)) if name == "TabNet" else (x,), y)


@pytest.mark.parametrize("graph", [True, False], ids=["captured", "kernel by kernel"])
@pytest.mark.parametrize("number", [0, 1], ids=["usual", "four times"])
@pytest.mark.parametrize("name", STEP_ROWS)
def test_step(compare, device, name, number, graph) -> None:
    *_, batches, target = STEP_ROWS[name]
    ours, peer, work = prepared(name, batches[number], device)
    step = captured(work(ours), device) if graph else work(ours)
    title = f"{name} B {batches[number]} {'captured ' if graph else ''}training step"
    compare(title, step, peer.eager(work), targets={peer.eager_name: target} if graph else {})


@pytest.mark.parametrize("stocks", [300, 4000, 20000])
def test_gats(compare, device, stocks) -> None:
    torch.manual_seed(0)
    ours = models.GATsNet(FEATURES, HIDDEN).to(device)
    work = stepper((torch.randn(stocks, FEATURES * STEPS, device=device),), torch.randn(stocks, device=device))
    peer = peer_of(ours, "pytorch_gats", "GATModel", FEATURES, HIDDEN)
    # All pairs of 20,000 stocks are 1.6 GB a matrix in plain PyTorch, and 205 GB in Qlib's.
    peers = peer.eager(work) if stocks <= 4000 or peer.owner != "Qlib" else {}
    compare(f"GATs N {stocks} training step", work(ours), peers, targets={peer.eager_name: 100.0} if stocks == 4000 else {})


# Last, because compiling takes its time, and a run that is cut short keeps what it has.
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("name", ["TabNet", "ALSTM (GRU)", "LocalFormer"])
def test_step_against_torch_compile(compare, device, name, mode) -> None:
    *_, batches, target = STEP_ROWS[name]
    ours, peer, work = prepared(name, batches[0], device)
    peers = peer.compiled(work, mode)
    (title,) = peers
    compare(f"{name} B {batches[0]} captured training step", captured(work(ours), device), peers, targets={title: target})
