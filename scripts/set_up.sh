#!/usr/bin/env bash
# Makes .venv with the tested versions, once; afterwards it only checks that nothing has changed. Sourced by the others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "lossopt needs Python 3.11 or newer; '$python' is not. Set PYTHON=/path/to/python3.11 and try again." >&2
    exit 2
fi

stamp=.venv/installed
wanted="$(cat pyproject.toml scripts/constraints.txt | cksum) ${EXTRAS:-}"
if ! grep -q "^$wanted" "$stamp" 2>/dev/null; then
    echo "Installing the packages into .venv (once; a minute or two) ..."
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        -c scripts/constraints.txt -e ".${EXTRAS:+[$EXTRAS]}"
    echo "$wanted" >>"$stamp"
fi
