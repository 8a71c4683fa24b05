"""alpha158's kernel against its reference, and what its sums must never do. It has no gradient, so no cases of the contract;
tests/data holds the features against plain definitions, tests/qlib against Qlib's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import alphakernels as ak
from alphakernels import ops
from alphakernels.ops import _library
from alphakernels.ops.alpha158 import ALPHA158

needs_library = pytest.mark.skipif(bool(_library.compiled().problem), reason="no compiled library")


def draw(instruments: int = 9, days: int = 201, seed: int = 0) -> torch.Tensor:
    """Bars [6, S, T]: a late one, one that ends, gaps, a price that stands still, a stock that does not trade, an infinite volume."""
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(instruments, days, generator=generator, dtype=torch.float64)

    close = 50 * (0.02 * normal()).cumsum(1).exp()
    open = close * (0.01 * normal()).exp()
    high, low = torch.maximum(open, close) * (1 + 0.01 * normal().abs()), torch.minimum(open, close) * (1 - 0.01 * normal().abs())
    volume = (10 + normal()).exp().round()
    bars = torch.stack([open, high, low, close, (high + low + close) / 3, volume])
    bars[:, torch.rand(instruments, days, generator=generator) < 0.04] = torch.nan
    bars[:, 0, :45] = torch.nan
    bars[:, 1, 90:] = torch.nan
    bars[:5, 2, 20:120] = bars[:5, 2, 19:20].nan_to_num(7.3)
    bars[5, 3, 30:110] = 0
    bars[5, 4, 77] = torch.inf
    bars[3, 5] = bars[3, 5].round()  # equal closes: ties in rank and order
    bars[:, 6] = torch.nan
    bars[4, 7] = torch.nan  # no vwap
    return bars


def everywhere(bars):
    _, instruments, days = bars.shape
    instrument, day = torch.meshgrid(torch.arange(instruments), torch.arange(days), indexing="ij")
    return bars, instrument.flatten(), day.flatten()


def same(a, b):
    return torch.equal(a.nan_to_num(nan=1.25e30), b.nan_to_num(nan=1.25e30)) and torch.equal(a.isnan(), b.isnan())


@needs_library
@pytest.mark.parametrize("instruments, days", [(9, 201), (7, 64), (7, 61), (8, 33), (8, 5), (8, 1)])
def test_equals_the_reference(instruments, days):
    bars = draw(max(instruments, 9), 201, seed=days)[:, :, :days]
    given = everywhere(bars)
    before = [t.clone() for t in given]
    with ak.use_backend("cpp"):
        actual = ops.alpha158(*given)
    assert all(same(a, b) for a, b in zip(given, before, strict=True))
    with ak.use_backend("reference"):
        expected = ops.alpha158(*given)
    assert actual.dtype == expected.dtype == torch.float32 and actual.shape == (len(given[1]), 158)
    for j, name in enumerate(ALPHA158):
        assert torch.equal(actual[:, j].isnan(), expected[:, j].isnan()), name
        torch.testing.assert_close(actual[:, j], expected[:, j], rtol=3e-7, atol=1e-9, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def test_a_price_that_stands_still():
    bars = torch.full((6, 1, 90), 1e9 / 3, dtype=torch.float64)
    out = dict(zip(ALPHA158, ops.alpha158(*everywhere(bars)).T, strict=True))
    for days in (5, 10, 20, 30, 60):
        assert (out[f"STD{days}"][1:] == 0).all() and (out[f"BETA{days}"][1:] == 0).all() and (out[f"RESI{days}"][1:] == 0).all()
        assert out[f"RSQR{days}"].isnan().all() and out[f"CORR{days}"].isnan().all() and out[f"CORD{days}"].isnan().all()
        assert (out[f"VSTD{days}"][1:] == 0).all() and out[f"STD{days}"][0].isnan()
        assert (out[f"MA{days}"] == 1).all() and (out[f"QTLU{days}"] == 1).all()
        assert out[f"IMAX{days}"].tolist() == out[f"IMIN{days}"].tolist() == [pytest.approx(1 / days)] * 90


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_left_the_windows_leaves_no_trace(backend):
    bars = draw(9, 170, seed=1)
    bars[:, 2] = bars[:, 2].nan_to_num(3.0)
    wild = bars.clone()
    wild[:, 2, 10:40] *= 1e15
    places = torch.full((70,), 2), torch.arange(100, 170)
    with ak.use_backend(backend):
        assert same(ops.alpha158(wild, *places), ops.alpha158(bars, *places))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_any_rows_and_names_in_any_order(backend, threads):
    bars, instrument, day = everywhere(draw())
    with ak.use_backend(backend):
        whole = ops.alpha158(bars, instrument, day)
        rows = torch.randperm(len(day), generator=torch.Generator().manual_seed(0))[:300]
        assert same(ops.alpha158(bars, instrument[rows], day[rows]), whole[rows])
        for name in ALPHA158[::7] + ALPHA158[-5:]:
            assert same(ops.alpha158(bars, instrument, day, [name, "KLEN"])[:, 0], whole[:, ALPHA158.index(name)]), name
        assert same(ops.alpha158(bars.transpose(1, 2).contiguous().transpose(1, 2), instrument, day), whole)
        for number in (1, 3):
            threads(number)
            assert same(ops.alpha158(bars, instrument, day), whole)
        single = bars.float()
        assert same(ops.alpha158(single, instrument, day), ops.alpha158(single.double(), instrument, day))
        nothing = torch.empty(0, dtype=torch.int64)
        assert ops.alpha158(bars, nothing, nothing).shape == (0, 158)
        assert ops.alpha158(bars[:, :0, :0], nothing, nothing).shape == (0, 158)
        assert ops.alpha158(bars, instrument, day, []).shape == (len(day), 0)


@needs_library
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set(isa, tmp_path):
    given = everywhere(draw(9, 90))
    torch.save(given, tmp_path / "given.pt")
    code = (
        "import sys, torch, alphakernels as ak; folder = sys.argv[1]\n"
        "out = ak.ops.alpha158(*torch.load(folder + '/given.pt')); torch.save(out, folder + '/out.pt')"
    )
    environment = os.environ | {"ALPHAKERNELS_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), ops.alpha158(*given), rtol=3e-7, atol=1e-9, equal_nan=True)


@needs_library
def test_it_is_an_op():
    bars, instrument, day = everywhere(draw(9, 90))
    torch.library.opcheck(torch.ops.alphakernels.alpha158.default, (bars.nan_to_num(1.0, posinf=2.0), instrument, day, torch.tensor([3, 0])))
    explanation = ak.explain(ops.alpha158, bars.float(), instrument, day)
    assert (explanation.op, explanation.kernel) == ("alpha158", "cpp")
    assert not ops.alpha158(bars.requires_grad_(), instrument, day).requires_grad


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_is_refused(backend):
    bars, i = torch.ones(6, 2, 4), torch.tensor([0, 1])
    for given, error, message in [
        ((bars[0], i, i), ValueError, r"^alpha158: bars must be of shape \[6, S, T\], got \[2, 4\]"),
        ((bars[:5], i, i), ValueError, r"^alpha158: bars must be of shape \[6, S, T\], got \[5, 2, 4\]"),
        ((bars.long(), i, i), TypeError, "^alpha158: bars must be a floating-point tensor"),
        ((bars, i.int(), i), TypeError, "^alpha158: instrument must be of dtype torch.int64, got torch.int32"),
        ((bars, i[:1], i), ValueError, r"^alpha158: instrument must be of shape \[2\], got \[1\]"),
        ((bars, i + 1, i), ValueError, r"^alpha158: instrument must be in \[0, 2\), got 2"),
        ((bars, i, i - 1), ValueError, r"^alpha158: day must be in \[0, 4\), got -1"),
        ((bars, i, i, ["MA5", "STD7"]), ValueError, "^alpha158: unknown feature 'STD7'; did you mean 'STD5'"),
    ]:
        with ak.use_backend(backend), pytest.raises(error, match=message):
            ops.alpha158(*given)


@needs_library
def test_a_pair_that_comes_twice():
    with pytest.raises(RuntimeError, match=r"asked for once, got \(1, 3\) again"):
        ops.alpha158(torch.ones(6, 2, 4), torch.tensor([1, 0, 1]), torch.tensor([3, 3, 3]))
