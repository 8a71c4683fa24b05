"""Every op with what torch builds on operators: torch.library.opcheck, torch.compile, second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import alphakernels as ak
from alphakernels import ops
from alphakernels.ops import _library
from alphakernels.testing import assert_close, cases, outputs_and_gradients

SMALL = pytest.mark.parametrize("case", cases("gradcheck"), ids=str)


class Recorder(TorchDispatchMode):
    """Keeps the calls of this package's ops."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace.startswith("alphakernels"):
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


@SMALL
def test_opcheck_of_forward_and_backward(case, route):
    backend, device = route
    inputs = case.inputs(torch.float32, device)
    with Recorder() as recorder:
        outputs_and_gradients(case.call, inputs, case.needs_grad)
    assert [function.__name__.removesuffix(".default") for function, _ in recorder.calls] == [
        case.op,
        f"{case.op}_backward",
    ]
    expected = _library.INTERPRETED if (backend, device) == ("triton", "cpu") else _library.NAMESPACE
    for function, args in recorder.calls:
        assert function.namespace == expected
        backward = function.__name__.endswith("_backward.default")

        def again(a, backward=backward):
            if isinstance(a, list):
                return [again(element) for element in a]
            return a.detach().clone().requires_grad_(a.requires_grad and not backward) if isinstance(a, torch.Tensor) else a

        torch.library.opcheck(function, tuple(again(a) for a in args))


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@SMALL
def test_compile_equals_eager(case, fresh_dynamo):
    inputs = case.inputs(torch.float32, seed=1)
    expected = outputs_and_gradients(case.call, inputs, case.needs_grad)
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    actual = outputs_and_gradients(compiled, inputs, case.needs_grad)
    for ours, theirs in zip(actual, expected, strict=True):
        for name in theirs:
            assert torch.equal(ours[name], theirs[name]), f"{case}: {name}"


@pytest.mark.parametrize(
    "case", [c for c in cases("contract") if c.id in ("middle dim", "ones updated", "ragged")], ids=str
)
def test_inductor_equals_eager(case, fresh_dynamo):
    inputs = case.inputs(torch.float32, seed=2)
    expected = outputs_and_gradients(case.call, inputs, case.needs_grad)
    actual = outputs_and_gradients(torch.compile(case.call, fullgraph=True), inputs, case.needs_grad)
    for ours, theirs in zip(actual, expected, strict=True):
        for name in theirs:
            assert_close(f"{case}: {name}", ours[name], theirs[name])


@pytest.mark.parametrize(
    "function",
    [
        ops.sparsemax,
        lambda x: ops.attentive_mask(x, torch.ones_like(x)).mask,
        lambda x: ops.ghost_batch_norm(x, virtual_batch_size=5),
        lambda x: ops.glu_block(x, virtual_batch_size=5),
        lambda x: ops.sfm(x[:, :, None], torch.ones(1, 10), torch.ones(2, 10), torch.ones(10), torch.ones(2), torch.ones(2)),
    ],
    ids=["sparsemax", "attentive_mask", "ghost_batch_norm", "glu_block", "sfm"],
)
def test_compile_with_dynamic_rows(function, fresh_dynamo):
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (24, 13, 4):
        x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
        assert torch.equal(compiled(x), function(x)), rows


def test_a_compiled_function_follows_use_backend(fresh_dynamo):
    seen = []

    def backend(graph, example_inputs):
        seen.append([str(node.target) for node in graph.graph.nodes if "alphakernels" in str(node.target)])
        return graph.forward

    compiled = torch.compile(ops.sparsemax, fullgraph=True, backend=backend)
    x = torch.randn(5, 7)
    compiled(x)
    with ak.use_backend("reference"):
        compiled(x)
    assert seen == [["alphakernels.sparsemax"], []]


def test_sparsemax_has_second_derivatives():
    (case,) = (c for c in cases("gradcheck") if str(c) == "sparsemax-gradcheck")
    x = case.inputs(torch.float64)["x"].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: ops.sparsemax(x) ** 2, x)


@pytest.mark.parametrize("case", [c for c in cases("gradcheck") if c.op != "sparsemax"], ids=str)
def test_second_derivatives_elsewhere_are_refused_never_wrong(case):
    inputs = case.inputs(torch.float64)
    x = inputs[case.needs_grad[0]].requires_grad_()

    def second(call):
        (grad,) = torch.autograd.grad(
            sum((t**2).sum() for t in call(inputs).values() if t.requires_grad), x, create_graph=True
        )
        return torch.autograd.grad((grad**2).sum(), x)[0]

    with pytest.raises(
        RuntimeError, match=rf"{case.op}_backward cannot be differentiated again.*use_backend\('reference'\)"
    ), ak.use_backend("cpp"):
        second(case.call)
    with ak.use_backend("reference"):
        assert torch.equal(second(case.call), second(case.reference))
