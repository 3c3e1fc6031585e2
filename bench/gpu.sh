#!/usr/bin/env bash
# Everything that needs a GPU, in one command and ten minutes: the tests on it, compute-sanitizer, the benchmarks.
# Prints a short table last; JSON, table and plot go to the folder named (default bench/results/<device>).
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
"$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no CUDA device"' || exit 2
name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-").lower())')
out=${1:-bench/results/$name}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 APE_TEST_DEVICE=cuda
status=0

{
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv
  "$python" -m ape_kernels
  echo "commit $(git rev-parse HEAD 2>/dev/null || echo unknown)"
} | tee "$out/environment.txt"

timeout 200 "$python" -m pytest tests/kernels/test_triton.py tests/kernels/test_backends.py tests/kernels/test_patches.py \
  tests/kernels/test_gpu.py -q 2>&1 | tee "$out/tests.txt" | tail -5
[ "${PIPESTATUS[0]}" = 0 ] || status=1

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m pytest tests/kernels/test_gpu.py -q \
      -k "sanitizer" >"$out/$tool.txt" 2>&1 || status=1
    tail -2 "$out/$tool.txt"
  done
else
  echo "compute-sanitizer: not installed, skipped"
fi

timeout 300 "$python" -m pytest bench/test_gpu.py -q --benchmark-json="$out/benchmarks.json" 2>&1 |
  tee "$out/benchmarks.txt" | tail -5
[ "${PIPESTATUS[0]}" = 0 ] || status=1
[ -s "$out/benchmarks.json" ] && "$python" bench/report.py "$out/benchmarks.json"
exit $status
