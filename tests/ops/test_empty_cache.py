"""Memory that is handed from one training step to the next: reused, never shared, never more than a step's, and given back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import alphakernels as ak
from alphakernels.models import GRUNet, LSTMNet, SFMNet
from alphakernels.ops import _library

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or _library.compiled().problem is not None, reason="the compiled library's pool of memory, on Linux"
)
LARGEST_REUSED_BY_THE_C_LIBRARY = 32 << 20
HIDDEN = 8
WEIGHTS = [torch.randn(3 * HIDDEN, 2), torch.randn(3 * HIDDEN, HIDDEN)]


@pytest.fixture(autouse=True)
def empty():
    ak.empty_cache()
    yield
    ak.empty_cache()


def gates(rows: int) -> torch.Tensor:
    """What a step over `rows` rows of two steps keeps: [1, 2, rows, 4 * HIDDEN], 256 bytes a row."""
    x = torch.full((rows, 2, 2), 0.5)
    return torch.ops.alphakernels.recurrent(x, None, None, WEIGHTS, None, "gru", False, True, True, 0.0, True)[3]


def megabytes(n: int) -> int:
    return (n << 20) // 256


def test_a_step_gets_the_memory_of_the_step_before():
    first = gates(megabytes(40))
    place, values = first.data_ptr(), first.clone()
    assert first.device == torch.device("cpu") and first.is_contiguous() and first.shape == (1, 2, megabytes(40), 4 * HIDDEN)
    first.fill_(torch.nan)
    del first
    again = gates(megabytes(40))
    assert again.data_ptr() == place
    assert torch.equal(again, values)  # nothing of what was there before is read
    del again
    assert gates(megabytes(36)).data_ptr() == place  # somewhat smaller: a day with fewer stocks
    assert ak.empty_cache() == 40 << 20
    assert ak.empty_cache() == 0


def large_saved(result: torch.Tensor) -> list[torch.Tensor]:
    """What the graph behind a result keeps in blocks of the pool."""
    nodes, seen, found = [result.grad_fn], set(), []
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kept = [t for t in getattr(node, "saved_tensors", ()) if t is not None]
        found += [t for t in kept if t.nbytes > LARGEST_REUSED_BY_THE_C_LIBRARY]
        nodes += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize("network", [LSTMNet, GRUNet, SFMNet])
def test_a_step_reads_nothing_of_the_step_before(network):
    torch.manual_seed(0)
    module, x = network(d_feat=3), torch.randn(1001, 3 * 40)
    gradients = []
    for _ in range(2):
        result = module(x)
        gradients.append(torch.autograd.grad(result.square().mean(), module.parameters(), retain_graph=True))
        kept = large_saved(result)
        assert kept
        for tensor in kept:
            tensor.fill_(torch.nan)
        del kept, tensor, result
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


def test_small_tensors_are_left_to_the_allocator():
    rows = LARGEST_REUSED_BY_THE_C_LIBRARY // 256
    gates(rows)
    assert ak.empty_cache() == 0
    gates(rows + 1)
    assert 0 < ak.empty_cache() - LARGEST_REUSED_BY_THE_C_LIBRARY <= 4096


def test_tensors_in_use_share_nothing():
    held = [gates(megabytes(34)) for _ in range(3)]
    for i, tensor in enumerate(held):
        tensor.fill_(i)
    del held[1]
    assert ak.empty_cache() == 34 << 20  # and what is in use stays
    held.append(gates(megabytes(34)))
    assert (held[0] == 0).all() and (held[1] == 2).all() and held[2].isfinite().all()


def test_no_more_is_kept_than_was_in_use_at_once():
    for size in (34, 50, 70, 45, 90, 34):  # none fits the one before
        gates(megabytes(size))
    assert ak.empty_cache() <= 90 << 20
    both = gates(megabytes(40)), gates(megabytes(60))
    del both
    assert ak.empty_cache() == 100 << 20


def test_a_block_that_nobody_asks_for_is_given_back():
    both = gates(megabytes(34)), gates(megabytes(80))
    del both
    for _ in range(300):
        gates(megabytes(34))
    assert ak.empty_cache() == 34 << 20


def test_threads_get_memory_of_their_own():
    wrong = []

    def work(value: int) -> None:
        for _ in range(6):
            tensor = gates(megabytes(33 + value % 3))
            tensor.fill_(value)
            if not (tensor == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert ak.empty_cache() <= 8 * 35 << 20  # a thread's next one is made before the one it replaces is gone


SCRIPT = """
import os, torch, alphakernels as ak
def gates():
    weights = [torch.ones(24, 2), torch.ones(24, 8)]
    return torch.ops.alphakernels.recurrent(torch.ones(1 << 18, 2, 2), None, None, weights, None, "gru", False, True, True, 0.0, True)[3]
torch.set_num_threads(1)
kept = gates()
expected = kept[0, 0, 0].clone()
del kept
child = os.fork()
if child == 0:  # works with the parent's memory, of which it has a copy
    kept = gates()
    same = torch.equal(kept[0, 0, 0], expected)
    del kept
    os._exit(0 if same and ak.empty_cache() == 64 << 20 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(gates()[0, 0, 0], expected)
print(ak.empty_cache() >> 20)
"""


@pytest.mark.parametrize("setting, kept", [("1", "64"), ("0", "0")])
def test_the_environment_turns_it_off_and_forks_have_their_own(setting, kept):
    environment = os.environ | {"ALPHAKERNELS_KEEP_MEMORY": setting, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = SCRIPT if setting == "1" else SCRIPT.replace("== 64 << 20", "== 0")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == kept
