"""recall@k of a trained model: python scripts/evaluate.py RUN_OR_CHECKPOINT. The same as `lossopt evaluate`."""

import sys

from lossopt.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
