#!/usr/bin/env bash
# Everything that must hold: format, lint, types, tests with warnings as errors. LOSSOPT_DATA adds the real data sets.
# A file of tests keeps to one process, and a process to one thread.
EXTRAS=dev,timm,parquet,safetensors,tune source "$(dirname "$0")/set_up.sh"
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile "$@"
