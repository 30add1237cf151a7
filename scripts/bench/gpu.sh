#!/usr/bin/env bash
# Benchmark a machine with one CUDA device, in one call of at most 8 minutes and without a download.
#
# Usage: scripts/bench/gpu.sh [--out DIR] [--seconds 8] [--device cuda|cpu]   (--help lists the options of gpu.py)
#
# It runs the GPU tests, times training, and writes the results to DIR/gpu.json and DIR/gpu.md. Without an active
# environment, name its Python: PYTHON=.venv/bin/python scripts/bench/gpu.sh

set -u
exec timeout --kill-after=5 475 "${PYTHON:-python}" "$(dirname "$0")/gpu.py" "$@"
