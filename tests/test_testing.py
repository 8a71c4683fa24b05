"""The shared comparisons themselves: a comparison that cannot fail would make every other test worthless."""

from __future__ import annotations

import math

import pytest
import torch

from alphakernels.ops._library import OPS
from alphakernels.testing import (
    BAD_INPUTS,
    CASES,
    TOLERANCES,
    assert_close,
    assert_no_worse_than_eager,
    cases,
    outputs_and_gradients,
)


def test_assert_close_names_the_tensor_and_the_place():
    expected = torch.ones(3, 4)
    actual = expected.clone()
    actual[1, 2] = 1.5
    with pytest.raises(AssertionError, match=r"dx: 1 of 12 elements differ; worst at \[1, 2\]: 1\.5, expected 1 "):
        assert_close("dx", actual, expected)
    with pytest.raises(AssertionError, match=r"dx: shape \[3, 4\], expected \[4, 3\]"):
        assert_close("dx", actual, expected.T)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_assert_close_at_the_edge(dtype):
    expected = torch.ones(5, dtype=torch.float64)
    allowed = sum(TOLERANCES[dtype][:2])
    assert_close("y", expected + 0.9 * allowed, expected, dtype)
    with pytest.raises(AssertionError):
        assert_close("y", expected + 1.1 * allowed, expected, dtype)


@pytest.mark.parametrize("actual, expected", [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (-math.inf, math.inf)])
def test_nan_and_infinity_must_be_at_the_same_places(actual, expected):
    with pytest.raises(AssertionError, match="1 of 1 elements differ"):
        assert_close("y", torch.tensor([actual]), torch.tensor([expected]))
    assert_close("y", torch.tensor([math.nan, math.inf]), torch.tensor([math.nan, math.inf]))


def test_integers_are_equal_or_wrong():
    assert_close("n", torch.tensor(10**6), torch.tensor(10**6))
    with pytest.raises(AssertionError):
        assert_close("n", torch.tensor(10**6), torch.tensor(10**6 + 1))


def test_no_worse_than_eager():
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eager = (exact + 1e-5 * torch.sin(torch.arange(1000))).float()
    assert_no_worse_than_eager("y", exact.float(), eager, exact)
    with pytest.raises(AssertionError, match="y: root mean square error"):
        assert_no_worse_than_eager("y", (exact + 3 * (eager - exact)).float(), eager, exact)
    spoiled = eager.clone()
    spoiled[7] += 1e-4
    with pytest.raises(AssertionError, match="y: worst error"):
        assert_no_worse_than_eager("y", spoiled, eager, exact)
    with pytest.raises(AssertionError):
        assert_no_worse_than_eager("y", torch.full_like(eager, torch.nan), eager, exact)


def test_every_op_has_cases_of_every_kind():
    # alpha158 makes features out of data, without a gradient, which the contract is about: it has tests of its own.
    public = {name for name in OPS if not name.endswith("_backward")} - {"alpha158"}
    for purpose in ("contract", "gradcheck", "benchmark"):
        assert {case.op for case in cases(purpose)} == public
    assert {bad.op for bad in BAD_INPUTS} == public
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", cases("contract")[:5], ids=str)
def test_inputs_are_the_same_numbers_in_every_dtype(case):
    single, double, again, other = (case.inputs(*a) for a in (
        (torch.float32,), (torch.float64,), (torch.float32,), (torch.float32, "cpu", 1)
    ))  # fmt: skip
    name = case.needs_grad[0]
    assert torch.equal(single[name].double(), double[name]) and torch.equal(single[name], again[name])
    assert not torch.equal(single[name], other[name])


def test_bytes_moved():
    (case,) = (c for c in cases("benchmark") if str(c) == "glu_block-4096 x 256, vbs 2048")
    mib = 4 * 4096 * 128
    assert case.bytes_moved() == (4 * mib, 6 * mib)  # u twice as wide as the residual and the output
    with pytest.raises(ValueError, match="only benchmark cases count their bytes|this one is for contract"):
        cases("contract")[0].__class__(**{**vars(cases("contract")[0]), "traffic": None}).bytes_moved()


def test_gradients_by_name():
    outputs, gradients = outputs_and_gradients(
        lambda i: {"y": i["a"] * 2, "z": i["b"].sum()}, {"a": torch.ones(3), "b": torch.ones(2), "c": None}, ("a", "b")
    )
    assert torch.equal(outputs["y"], torch.full((3,), 2.0))
    assert gradients["a"].shape == (3,) and gradients["b"][0] == gradients["b"][1]
