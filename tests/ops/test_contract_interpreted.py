"""The contract on the Triton kernels through Triton's interpreter, in a process that has it on from the start."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets itself")
def test_interpreted_kernels_keep_the_contract():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "interpreted and (parity or strided or never_written or every_output or opcheck or graph_kernels or empty or (autocast and layer-one)"
        " or (local_encoder_layer and (around_the_tiles or kernel or attends_to_nothing)))"
        # The interpreter takes seconds for these: once is enough, and test_graph_kernels has its own of many tiles.
        " and not attention-300 and not ((strided or never_written or every_output)"
        " and (attention-more or concepts-more or layer-long or layer-several or layer-one))",
    ]
    done = subprocess.run(
        [*command, *(str(HERE / f"test_{name}.py") for name in ("contract", "contract_torch", "graph_kernels", "local_encoder_layer"))],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
