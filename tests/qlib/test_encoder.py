"""LocalFormer and Transformer against Qlib's own: same seed, same weights; outputs and gradients."""

from __future__ import annotations

import pytest
import torch

from alphakernels import models, nn

localformer = pytest.importorskip("qlib.contrib.model.pytorch_localformer")
localformer_ts = pytest.importorskip("qlib.contrib.model.pytorch_localformer_ts")
transformer = pytest.importorskip("qlib.contrib.model.pytorch_transformer")
transformer_ts = pytest.importorskip("qlib.contrib.model.pytorch_transformer_ts")

PAIRS = pytest.mark.parametrize(
    "ours, theirs, windows",
    [
        (models.LocalformerNet, localformer.Transformer, False),
        (models.LocalformerNet, localformer_ts.Transformer, True),
        (models.TransformerNet, transformer.Transformer, False),
        (models.TransformerNet, transformer_ts.Transformer, True),
    ],
    ids=["localformer", "localformer_ts", "transformer", "transformer_ts"],
)


def pair(ours, theirs, **options):
    torch.manual_seed(3)
    a = ours(**options)
    torch.manual_seed(3)
    return a, theirs(**options)


def sample(windows: bool, features: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (11, 13, features) if windows else (11, 13 * features)
    return torch.randn(shape, generator=generator).to(dtype)


@PAIRS
def test_same_seed_same_weights(ours, theirs, windows):
    a, b = pair(ours, theirs)
    ours_state, theirs_state = a.state_dict(), b.state_dict()
    assert list(ours_state) == list(theirs_state)
    for name, t in theirs_state.items():
        assert torch.equal(ours_state[name], t), name
    assert [name for name, _ in a.named_parameters()] == [name for name, _ in b.named_parameters()]


@PAIRS
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_outputs_and_gradients(ours, theirs, windows, dtype, tolerance):
    a, b = pair(ours, theirs, d_feat=5, d_model=16, nhead=2, num_layers=2, dropout=0.0)
    a, b = a.to(dtype), b.to(dtype)
    x, label = sample(windows, 5, dtype), torch.linspace(-1, 1, 11, dtype=dtype)
    found = []
    for model in (a, b):
        out = model(x)
        loss = ((out - label) ** 2).mean()
        names, parameters = zip(*((n, p) for n, p in model.named_parameters() if not n.startswith("encoder_layer.")), strict=True)
        found.append((out, dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))))
    (out, gradients), (expected, expected_gradients) = found
    assert (out - expected).abs().max() <= tolerance * expected.abs().max()
    largest = max(g.abs().max() for g in expected_gradients.values())
    for name, g in expected_gradients.items():
        # Of the largest gradient: those of the keys' biases are zero but for rounding.
        assert (gradients[name] - g).abs().max() <= tolerance * max(g.abs().max(), 0.05 * largest), name


@PAIRS
def test_evaluation(ours, theirs, windows):
    a, b = pair(ours, theirs, d_feat=5, dropout=0.5)
    a.eval(), b.eval()
    x = sample(windows, 5, torch.float32)
    with torch.no_grad():
        out, expected = a(x), b(x)
    assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("heads, width", [(1, 8), (2, 64), (8, 96), (4, 256)])
@pytest.mark.parametrize("steps", [1, 7, 60, 128])
def test_localformer_encoder(heads, width, steps):
    """Ours takes Qlib's layout [T, N, F] with a torch layer's arguments, masks included."""
    made = []
    for encoder, layer in (
        (nn.LocalformerEncoder, nn.TransformerEncoderLayer),
        (localformer.LocalformerEncoder, torch.nn.TransformerEncoderLayer),
    ):
        torch.manual_seed(4)
        made.append(encoder(layer(width, heads, 50, dropout=0.0), 2, width).double())
    x = torch.randn(steps, 3, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(steps, dtype=torch.float64)
    out, expected = (encoder(x, mask) for encoder in made)
    assert (out - expected).abs().max() <= 1e-9 * expected.abs().max()
    g, e = (torch.autograd.grad((t**3).sum(), list(m.parameters())) for t, m in zip((out, expected), made, strict=True))
    largest = max(t.abs().max() for t in e)
    assert all((a - b).abs().max() <= 1e-9 * largest for a, b in zip(g, e, strict=True))
