#!/usr/bin/env bash
# Everything that must hold: format, lint, types, tests with warnings as errors. LOSSOPT_DATA adds the real data sets.
EXTRAS=dev,timm,parquet,safetensors,tune source "$(dirname "$0")/set_up.sh"
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
