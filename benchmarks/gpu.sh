#!/usr/bin/env bash
# On a machine with a CUDA build of PyTorch (and nvcc, where CUDA C++ is to be built): builds, runs the op contract on the GPU,
# measures, and leaves one folder of results. Nothing is downloaded or installed. Under 9 minutes.
#
#   benchmarks/gpu.sh [FOLDER] [PYTHON]
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu-results}
python=${2:-python3}
mkdir -p "$out"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0

step() {  # step NAME SECONDS COMMAND...: runs it within its time, keeps its output, goes on after a failure
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  local status=$?
  tail -n 25 "$out/$name.log"
  if [ $status -ne 0 ]; then
    echo "-- $name: exit $status"
    failed=1
  fi
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$out/gpu.csv" 2>&1 || true
step build 120 "$python" setup.py build_ext --inplace
step doctor 60 "$python" -m alphakernels doctor
step contract 200 "$python" -m pytest -q -p no:cacheprovider -k "triton or compiled" tests/ops
step measure 170 "$python" -m pytest -q -p no:cacheprovider benchmarks --device cuda --benchmark-disable-gc
cp -f benchmarks/results.json "$out/" 2>/dev/null || true
exit $failed
