"""Imports point one way, and importing the package is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import alphakernels

PACKAGE = Path(alphakernels.__file__).parent

# What each package may import of the others. `testing` serves tests, benchmarks and the verification of a swap; `qlib` is the
# bridge out: only the command line's qrun imports it.
ALLOWED = {
    "ops": set(),
    "nn": {"ops"},
    "models": {"ops", "nn"},
    "data": {"ops"},
    "training": set(),
    "plotting": set(),
    "testing": {"ops", "nn", "models"},
    "swap": {"ops", "nn", "models", "testing"},
    "estimators": {"ops", "nn", "models", "data", "training"},
    "qlib": {"ops", "nn", "models", "data", "training", "estimators"},
    "tasks": {"data", "training", "estimators"},
    "cli": {"ops", "nn", "models", "data", "training", "estimators", "plotting", "tasks", "qlib"},
}


def imported_packages(file: Path) -> set[str]:
    """The packages of alphakernels that a file imports, wherever in the file it does so."""
    relative = file.relative_to(PACKAGE)
    here = ["alphakernels", *relative.parent.parts]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    packages = {name.split(".")[1] for name in found if name.startswith("alphakernels.")}
    return packages & set(ALLOWED)


FILES = sorted(p for p in PACKAGE.rglob("*.py") if len(p.relative_to(PACKAGE).parts) > 1)


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    package = file.relative_to(PACKAGE).parts[0]
    assert package in ALLOWED, f"say in ALLOWED what the new package {package} may import"
    assert imported_packages(file) - {package} <= ALLOWED[package]


def test_the_scan_sees_what_is_imported():
    assert imported_packages(PACKAGE / "models" / "tabnet.py") == {"nn", "ops"}
    assert "ops" in imported_packages(PACKAGE / "__init__.py")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = (
    "import torch, sys; before = set(sys.modules); import alphakernels; {more}; print(*(set(sys.modules) - before))"
)


@pytest.mark.parametrize(
    "more",
    ["pass", "alphakernels.models.TabNet(3, 2)", "alphakernels.explain(alphakernels.ops.sparsemax, torch.zeros(3))"],
)
def test_import_is_light(more):
    """Counted in modules, not seconds: no large package comes with it, and hardly one that torch has not loaded."""
    loaded = run(LOADED.format(more=more)).split()
    heavy = {
        "pandas",
        "triton",
        "matplotlib",
        "tqdm",
        "typer",
        "yaml",
        "safetensors",
        "scipy",
        "sklearn",
        "torch._dynamo",
        "torch._inductor",
    }
    assert not heavy & set(loaded)
    others = [name for name in loaded if not name.startswith("alphakernels")]
    assert len(others) < 60, others


def test_public_names():
    assert set(alphakernels.__all__) >= {
        "ops",
        "nn",
        "models",
        "data",
        "training",
        "estimators",
        "use_backend",
        "explain",
        "__version__",
    }
    for name in ("nn", "models", "data", "training", "estimators", "testing"):
        assert getattr(alphakernels, name).__name__ == f"alphakernels.{name}"
    with pytest.raises(AttributeError, match="module 'alphakernels' has no attribute 'modles'"):
        alphakernels.modles  # noqa: B018
