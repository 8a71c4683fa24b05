#!/usr/bin/env bash
# On a machine with a CUDA build of PyTorch (and nvcc, where CUDA C++ is to be built): builds, tests on the GPU, measures, looks for bad
# memory accesses and races, and leaves one folder of results. Nothing is downloaded or installed; neither Qlib nor pytorch-tabnet is
# needed. The limits add up to under 9 minutes.
#
#   benchmarks/gpu.sh [FOLDER] [PYTHON]      STEPS="build measure" runs these alone; SLOWER=2 doubles the limits
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu-results}
python=${2:-python3}
wanted=${STEPS:-build doctor contract gpu measure sanitizer}
mkdir -p "$out"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# The tree may have come without its history, or belong to somebody else.
export ALPHAKERNELS_COMMIT=${ALPHAKERNELS_COMMIT:-$(git -c safe.directory='*' rev-parse --short HEAD 2>/dev/null)}
if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then PATH=$PATH:/usr/local/cuda/bin; fi
failed=0

step() {  # step NAME SECONDS COMMAND...: runs it within its time, keeps its output, goes on after a failure
  local name=$1 limit=$(($2 * ${SLOWER:-1}))
  shift 2
  case " $wanted " in *" $name "*) ;; *) return ;; esac
  echo "== $name"
  # An interrupt, so that pytest still tells what it has, and the benchmarks write it.
  timeout -s INT -k 10 "$limit" "$@" >"$out/$name.log" 2>&1
  local status=$?
  tail -n 25 "$out/$name.log"
  if [ $status -ne 0 ]; then
    echo "-- $name: exit $status"
    failed=1
  fi
}

sanitizer() {  # sanitizer SECONDS: the three tools over small cases of every op, each allocation on its own
  local tool status=0
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not here"
    return
  fi
  for tool in memcheck racecheck initcheck; do
    echo "-- $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 5 "$1" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 \
      "$python" -m pytest -q -x -p no:cacheprovider tests/ops/test_contract.py -k "parity and (triton or compiled) and one" || status=1
  done
  return $status
}
export -f sanitizer
export python

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
export ALPHAKERNELS_CUDA_ARCHS=${ALPHAKERNELS_CUDA_ARCHS:-${capability:-80;90;100}}
# Triton compiles every case anew: on all cores, where pytest can.
cores=$("$python" -c "import xdist, os; print('-n', min(8, os.cpu_count()))" 2>/dev/null)
# A library that was not built fails no build, and everything recurrent would be torch's own from here on, measured against itself.
step build 90 bash -c '"$python" setup.py build_ext --inplace && "$python" -c "
import sys
from alphakernels.ops import _library
sys.exit(\"; \".join(library.problem for library in (_library.compiled(), _library.compiled_cuda()) if library.problem) or 0)"'
step doctor 20 "$python" -m alphakernels doctor
# shellcheck disable=SC2086
step contract 90 env OMP_NUM_THREADS=2 "$python" -m pytest -q -p no:cacheprovider $cores -k "triton or compiled" tests/ops \
  --deselect tests/ops/test_triton_aot.py --deselect tests/ops/test_triton_compiled.py  # what they show needs no GPU
# shellcheck disable=SC2086
step gpu 80 env OMP_NUM_THREADS=2 "$python" -m pytest -q -p no:cacheprovider ${cores:+-n 3 --dist loadfile} tests/gpu
rm -f benchmarks/results.json
step measure 150 "$python" -m pytest -q -p no:cacheprovider benchmarks/test_gpu.py --device cuda --rounds 9 --benchmark-disable-gc
cp -f benchmarks/results.json "$out/" 2>/dev/null || true
step sanitizer 105 bash -c "sanitizer 34"
exit $failed
