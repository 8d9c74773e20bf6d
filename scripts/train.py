"""Train a retrieval model: python scripts/train.py --config configs/quickstart.yaml. The same as `lossopt train`."""

import sys

from lossopt.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
