"""Runs the contract's cases on the machine, in a process of its own: `python -m ptx.run_cases LIBRARY OP...`, and prints as JSON what was
launched, what the machine found and which numbers are wrong. All cases run in float32, a few of each op in bfloat16, float16 and tf32."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import alphakernels as ak
from alphakernels.testing import TOLERANCES, Tolerance, assert_close, cases, outputs_and_gradients
from alphakernels.testing.cases import Case

from .driver import install
from .machine import Machine

# In half precision the loads, the conversions and the products are other ones. Of an op that is not named here the first case runs.
HALF = {
    "attention_pool": {"odd", "dropout"},
    "attentive_mask": {"prior updated"},
    "complete_graph_attention": {"63 stocks", "days"},
    "concept_attention": {"stocks and concepts", "days"},
    "hidden_concepts": {"63 stocks", "days"},
    "ghost_batch_norm": {"ragged", "batches of many blocks", "linear bias", "evaluation"},
    "glu_block": {"ragged", "batches of many blocks", "folded norm"},
    "local_encoder_layer": {"odd sizes", "low memory", "masked", "dropout"},
    "predefined_concepts": {"63 stocks", "days"},
    "sfm": {"odd sizes", "more units than a block"},
    "sparsemax": {"rows", "wide", "long rows"},
}
# Products of float32 numbers that are rounded to tf32, where the user allows it.
TF32 = {"complete_graph_attention", "concept_attention", "hidden_concepts", "local_encoder_layer", "predefined_concepts"}
TF32_TOLERANCE = Tolerance(5e-3, 5e-3)
# The size from which an op takes other kernels, lowered so that small cases take them: op, name in its module, value.
LOWERED = (("complete_graph_attention", "ALL_PAIRS", 0), ("sparsemax", "MAX_TILE", 1000))


@contextmanager
def replaced(holder: object, name: str, value: object) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


def check(case: Case, dtype: torch.dtype, tolerance: Tolerance | None) -> list[str]:
    """What is wrong with the numbers of the case's outputs and gradients, against the reference in float64."""
    inputs = case.inputs(dtype, "cpu", seed=1)
    exact = {name: t.double() if t is not None else None for name, t in inputs.items()}
    wrong = []
    try:
        with ak.use_backend("triton"):
            actual = outputs_and_gradients(case.call, inputs, case.needs_grad)
    except Exception as error:  # the others are still to be told
        return [f"{case} in {dtype}: {type(error).__name__}: {error}"]
    with ak.use_backend("reference"):
        expected = outputs_and_gradients(case.reference, exact, case.needs_grad)
    for kind, ours, theirs in zip(("", "gradient of "), actual, expected, strict=True):
        for name in theirs:
            try:
                assert_close(f"{case} in {dtype}: {kind}{name}", ours[name], theirs[name], tolerance=tolerance or TOLERANCES[dtype])
            except AssertionError as error:
                wrong.append(str(error))
    return wrong


def check_op(op: str) -> list[str]:
    wrong = []
    contract = [case for case in cases("contract") if case.op == op]
    for case in contract:
        wrong += check(case, torch.float32, case.tolerance)
    chosen = [case for case in contract if case.id in HALF.get(op, {contract[0].id})]
    for case in chosen:
        for dtype in (torch.bfloat16, torch.float16):
            wrong += check(case, dtype, case.half_tolerance)
    if op in TF32:
        with replaced(torch.backends.cuda.matmul, "fp32_precision", "tf32"):
            wrong += check(chosen[0], torch.float32, TF32_TOLERANCE)
    for lowered, name, value in LOWERED:
        if op == lowered:
            with replaced(importlib.import_module(f"alphakernels.ops.{op}.triton"), name, value):
                for case in chosen:
                    for dtype, tolerance in ((torch.float32, case.tolerance), (torch.bfloat16, case.half_tolerance)):
                        wrong += check(case, dtype, tolerance)
    return wrong


if __name__ == "__main__":
    record = install(Machine(Path(sys.argv[1])))
    torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is filled with NaN: what is not written shows
    numbers = [line for op in sys.argv[2:] for line in check_op(op)]
    print(json.dumps({"wrong": numbers, "findings": record.findings, "launched": sorted(record.launched)}))
