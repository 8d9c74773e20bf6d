#!/usr/bin/env bash
# From a fresh clone to the recall@k of a model that was trained in front of you: no account, no further download.
source "$(dirname "$0")/set_up.sh"
.venv/bin/lossopt train --config configs/quickstart.yaml "$@"
