"""nn.TransformerEncoderLayer against torch's own, and LocalFormer's layers."""

from __future__ import annotations

import pytest
import torch

import alphakernels as ak
from alphakernels import nn
from alphakernels.testing import assert_close

TORCH = torch.nn.TransformerEncoderLayer


def pair(*args, **options):
    made = []
    for kind in (nn.TransformerEncoderLayer, TORCH):
        torch.manual_seed(1)
        made.append(kind(*args, **options))
    return made


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def compare(ours, theirs, x, *args, dtype=torch.float64, **options):
    ours, theirs, x = ours.to(dtype), theirs.to(dtype), x.to(dtype)
    found = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf, *args, **options)
        found.append(
            (y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum(), [leaf, *layer.parameters()]))
        )
    names = ["output", "x", *(name for name, _ in theirs.named_parameters())]
    for name, a, b in zip(names, *found, strict=True):
        assert_close(name, a, b)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("steps, width, heads", [(1, 8, 1), (7, 8, 8), (20, 96, 3), (60, 64, 2), (128, 64, 8), (300, 256, 4)])
def test_like_torchs(steps, width, heads, batch_first):
    ours, theirs = pair(width, heads, 37, dropout=0.0, batch_first=batch_first)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    compare(ours, theirs, random(3, steps, width) if batch_first else random(steps, 3, width))


@pytest.mark.parametrize("kind", ["bool", "additive", "causal", "causal hint"])
def test_masks(kind):
    ours, theirs = pair(12, 2, 20, dropout=0.0, batch_first=True)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64)
    mask = {"bool": causal.isinf(), "additive": random(9, 9, dtype=torch.float64)}.get(kind, causal)
    compare(ours, theirs, random(4, 9, 12), mask, is_causal=kind == "causal hint")


def test_one_sample_without_a_batch():
    compare(*pair(12, 2, 20, dropout=0.0), random(9, 12))


@pytest.mark.parametrize(
    "options, call, reason",
    [
        (dict(norm_first=True), {}, "norm_first"),
        (dict(activation="gelu"), {}, "activation is gelu"),
        (dict(bias=False), {}, "module has none"),
        ({}, dict(src_key_padding_mask=torch.arange(9).expand(4, 9) > 6), "src_key_padding_mask"),
        ({}, dict(src_mask=torch.zeros(8, 9, 9, dtype=torch.float64)), "one mask"),
        ({}, dict(src_mask=torch.arange(9)[:, None].expand(9, 9) == 2), "hides every key"),
    ],
    ids=["norm_first", "gelu", "no biases", "padding", "masks of heads", "a row hidden"],
)
def test_options_that_run_on_torchs_own(options, call, reason):
    ours, theirs = pair(12, 2, 20, dropout=0.0, batch_first=True, **options)
    compare(ours, theirs, random(4, 9, 12), **call)
    explanation = ak.explain(ours, random(4, 9, 12, dtype=torch.float64), **call)
    assert explanation.kernel == "torch" and reason in str(explanation)


def test_more_steps_than_the_kernels_take():
    ours, theirs = pair(8, 2, 12, dropout=0.0, batch_first=True)
    compare(ours, theirs, random(2, 513, 8))
    assert ak.explain(ours, random(2, 513, 8, dtype=torch.float64)).kernel == "torch"
    assert ak.explain(ours, random(2, 512, 8, dtype=torch.float64)).kernel == "cpp"


def test_hooks_of_submodules_are_called():
    layer, seen = nn.TransformerEncoderLayer(8, 2, 12), []
    layer.linear1.register_forward_hook(lambda *_: seen.append(1))
    layer(random(5, 2, 8))
    assert seen == [1]


def test_inside_torchs_encoder():
    made = []
    for kind in (nn.TransformerEncoderLayer, TORCH):
        torch.manual_seed(1)
        made.append(torch.nn.TransformerEncoder(kind(12, 2, 20, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False))
    compare(*made, random(4, 9, 12))


def test_dropout_follows_the_seed_and_keeps_the_mean(threads):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.4, batch_first=True)
    x = random(2, 5, 8)

    def outputs(seed, n=1):
        torch.manual_seed(seed)
        return torch.stack([layer(x) for _ in range(n)])

    assert torch.equal(outputs(1), outputs(1)) and not torch.equal(outputs(1), outputs(2))
    assert not torch.equal(*outputs(3, 2))
    threads(1)
    one = outputs(4)
    threads(2)
    assert torch.equal(one, outputs(4))
    expected = torch.stack([TORCH.forward(layer, x) for _ in range(150)])
    found = outputs(5, 150)
    error = (expected.var(0) / 150 + found.var(0) / 150).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs() < 5.5 * error).all()
    assert (found.var(0) / expected.var(0)).log().abs().max() < 0.7
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_low_memory_is_bitwise_the_same():
    layer = nn.LocalformerEncoderLayer(16, 2, 64, dropout=0.4, batch_first=True)
    results = []
    for layer.memory in ("auto", "low"):
        torch.manual_seed(7)
        x = random(6, 9, 16).requires_grad_()
        y, u = layer(x)
        results.append([y, u, *torch.autograd.grad((y * u).sum(), [x, *layer.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("norm_first", [False, True])
def test_attention_weights_are_torchs(norm_first):
    layer = nn.TransformerEncoderLayer(12, 3, 20, norm_first=norm_first).double().eval()
    x, mask = random(9, 4, 12, dtype=torch.float64), random(9, 9, dtype=torch.float64)
    taken = layer.norm1(x) if norm_first else x
    expected = layer.self_attn(taken, taken, taken, attn_mask=mask, average_attn_weights=False)[1]
    assert_close("weights", layer.attention(x, mask), expected)
    assert_close("of one sample", layer.attention(x[:, 1], mask), expected[1])


@pytest.mark.parametrize("batch_first", [False, True])
def test_localformer_layers(batch_first):
    """The layer, the encoder made of the same parameters, and the attention maps of both."""
    layer = nn.LocalformerEncoderLayer(12, 2, 20, dropout=0.0, batch_first=batch_first).double()
    plain = nn.TransformerEncoderLayer(12, 2, 20, dropout=0.0, batch_first=batch_first).double()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("conv.")})
    encoder = nn.LocalformerEncoder(plain, 2, 12).double()
    for conv in encoder.conv:
        conv.load_state_dict(layer.conv.state_dict())
    x = random(*((4, 9) if batch_first else (9, 4)), 12, dtype=torch.float64)
    middle, u = layer(x)
    time_last = x.permute(0, 2, 1) if batch_first else x.permute(1, 2, 0)
    expected = layer.conv(time_last).permute(*((0, 2, 1) if batch_first else (2, 0, 1)))
    assert_close("u", u, expected)
    assert_close("middle", middle, TORCH.forward(plain, x + expected))
    last, u = layer(middle)
    assert_close("output", encoder(x), last + u)
    assert_close("attention", encoder.attention(x), layer.attention(middle))
    assert_close("attention of the first", encoder.attention(x, 0), layer.attention(x))


def test_empty_batch():
    layer = nn.LocalformerEncoderLayer(12, 2, 20, batch_first=True)
    y, u = layer(torch.empty(0, 9, 12, requires_grad=True))
    assert y.shape == u.shape == (0, 9, 12)
    gradients = torch.autograd.grad(y.sum() + u.sum(), list(layer.parameters()))
    assert all((g == 0).all() for g in gradients)
