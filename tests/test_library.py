"""The compiled library when it is whole, corrupt or missing, and on each instruction set."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import alphakernels
from alphakernels.ops import _library

PACKAGE = Path(alphakernels.__file__).parent

# Prints, as JSON: the warnings, what explain says, and results of every op with their gradients.
PROBE = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    torch.set_num_threads(1)
    before = len(caught)
    import alphakernels as ak
    import alphakernels.ops
    from alphakernels.models import TabNet
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(37, 14, generator=generator).requires_grad_()
    outs = [
        ak.ops.sparsemax(x),
        ak.ops.attentive_mask(x, torch.ones_like(x)).mask,
        ak.ops.ghost_batch_norm(x, virtual_batch_size=10),
        ak.ops.glu_block(x, virtual_batch_size=10),
    ]
    weights = [torch.randn(o.shape, generator=generator) for o in outs]
    values = [*outs, torch.autograd.grad(sum((o * w).sum() for o, w in zip(outs, weights)), x)[0]]
    TabNet(14, 2, 4, 4, n_steps=2, vbs=10)(x, torch.ones_like(x))
    explanation = ak.explain(ak.ops.sparsemax, x)
print(json.dumps({
    "warnings": [str(w.message) for w in caught[before:] if "alphakernels" in str(w.message)],
    "kernel": explanation.kernel, "detail": explanation.detail, "reasons": explanation.reasons,
    "values": [v.flatten().tolist() for v in values],
}))
"""


def probe(path: Path, **environment: str) -> dict:
    env = {k: v for k, v in os.environ.items() if k not in ("ALPHAKERNELS_ISA", "TRITON_INTERPRET")}
    env |= {"PYTHONPATH": str(path)} | environment
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{PROBE}"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def expected():
    with alphakernels.use_backend("reference"):
        x = torch.randn(37, 14, generator=torch.Generator().manual_seed(0))
        return alphakernels.ops.sparsemax(x).flatten().tolist()


@pytest.fixture
def copy(tmp_path):
    """A copy of the package without its compiled library."""
    shutil.copytree(PACKAGE, tmp_path / "alphakernels", ignore=shutil.ignore_patterns("_C*", "__pycache__", "*.gz"))
    return tmp_path


def assert_same_values(found, other):
    for a, b in zip(found["values"], other["values"], strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-5)


def test_the_library_is_built():
    if os.environ.get("ALPHAKERNELS_BUILD") == "none":
        pytest.skip("ALPHAKERNELS_BUILD=none")
    assert _library.compiled().problem is None


def test_a_missing_library_is_one_warning_and_the_reference(copy, expected):
    found = probe(copy)
    assert len(found["warnings"]) == 1
    assert "alphakernels runs on its PyTorch reference: the compiled library was not built" in found["warnings"][0]
    assert found["kernel"] == "reference"
    assert "was not built" in found["reasons"]["cpp"]
    torch.testing.assert_close(found["values"][0], expected)


@pytest.mark.parametrize("content", [b"", b"\x7fELF not really a library" * 100], ids=["empty", "garbage"])
def test_a_corrupt_library_is_one_warning_and_the_reference(copy, content, expected):
    (copy / "alphakernels" / "_C.abi3.so").write_bytes(content)
    found = probe(copy)
    assert len(found["warnings"]) == 1
    assert "the compiled library _C.abi3.so cannot be loaded: " in found["warnings"][0]
    assert found["kernel"] == "reference"
    assert "cannot be loaded" in found["reasons"]["cpp"]
    torch.testing.assert_close(found["values"][0], expected)


def test_a_truncated_library_is_one_warning_and_the_reference(copy, expected):
    if _library.compiled().path is None:
        pytest.skip("no library to cut short")
    whole = _library.compiled().path.read_bytes()
    (copy / "alphakernels" / "_C.abi3.so").write_bytes(whole[:4096])
    found = probe(copy)
    assert len(found["warnings"]) == 1 and found["kernel"] == "reference"
    torch.testing.assert_close(found["values"][0], expected)


@pytest.mark.skipif(_library.compiled().problem is not None, reason=str(_library.compiled().problem))
def test_every_instruction_set_gives_the_same_numbers(expected):
    results = {isa: probe(PACKAGE.parent, ALPHAKERNELS_ISA=isa) for isa in ("portable", "avx2", "avx512", "nonsense")}
    best = results["nonsense"]["detail"].split(",")[0]  # an unknown name changes nothing
    ladder = ["portable", "avx2", "avx512"]
    for isa, found in results.items():
        assert found["warnings"] == [] and found["kernel"] == "cpp"
        wanted = isa if isa in ladder and ladder.index(isa) < ladder.index(best) else best
        assert found["detail"] == f"{wanted}, float32"
        assert_same_values(found, results["portable"])
    torch.testing.assert_close(results["portable"]["values"][0], expected, rtol=1e-5, atol=1e-6)


def test_compile_caches_of_another_version_are_left_alone(copy):
    """A graph stored by torch.compile calls backward ops with the arguments they had in the version that stored it."""

    def tag() -> str:
        code = f"import sys; sys.path.insert(0, {str(copy)!r})\nimport alphakernels.ops, torch; print(torch.compiler.config.cache_key_tag)"
        env = os.environ | {"TORCH_COMPILE_CACHE_KEY_TAG": "mine-"}
        return subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, check=True).stdout

    before = tag()
    assert before.startswith("mine-alphakernels-")
    assert tag() == before
    with (copy / "alphakernels/ops/sparsemax/op.py").open("a") as file:
        file.write("# changed\n")
    assert tag() != before
