"""Installing from source where no compiler works: the install succeeds, and the package runs on its reference."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="not a source tree"),
    pytest.mark.skipif(
        not {"pip", "setuptools", "wheel"} <= {d.name for d in importlib.metadata.distributions()},
        reason="pip, setuptools and wheel are needed to build without isolation",
    ),
]


@pytest.mark.parametrize(
    "environment", [{"CC": "/bin/false", "CXX": "/bin/false"}, {"ALPHAKERNELS_BUILD": "none"}], ids=["failing", "none"]
)
def test_installs_without_a_compiler(environment, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".*", "build", "*.so", "*.egg-info", "__pycache__", "tests", "benchmarks"),
    )
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*command, "--target", str(tmp_path / "site"), str(source)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path / "site")!r})
import torch, alphakernels as ak
assert ak.__file__.startswith({str(tmp_path)!r}), ak.__file__
print(ak.explain(ak.ops.sparsemax, torch.zeros(3)))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "sparsemax: reference" in ran.stdout
    assert ran.stderr.count("alphakernels runs on its PyTorch reference") == 1


def test_an_unknown_build_is_named():
    env = os.environ | {"ALPHAKERNELS_BUILD": "gpu"}
    done = subprocess.run([sys.executable, "setup.py", "--version"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "ALPHAKERNELS_BUILD must be auto, cpu, cuda or none, got 'gpu'" in done.stderr
