#!/bin/sh
# Everything that a GPU has to show: tests and benchmarks, each with its own limit, as one JSON file in benchmarks/results.
# Run: sh benchmarks/gpu.sh [--parts tests loss …] [--output FOLDER]. Five minutes on one GPU.
cd "$(dirname "$0")/.." || exit 2
unset PYTHONDONTWRITEBYTECODE  # or each of the many processes compiles torch again
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
