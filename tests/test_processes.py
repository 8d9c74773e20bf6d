"""Several processes measure what one measures: no image is counted twice to make the shares even."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import pytorch_lightning as pl
from lossopt import config as configuration
from lossopt.callbacks import RetrievalAtValidation

def main(processes):
    words = ["--config", "configs/quickstart.yaml", "--data.init_args.evaluation_batch_size", "64"]
    made = configuration.instantiate(configuration.parse(words))
    pl.seed_everything(0)
    watch = RetrievalAtValidation()
    trainer = pl.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, callbacks=[watch],
    )
    found = trainer.validate(made.model, datamodule=made.data, verbose=False)[0]
    found["images"] = len(made.data.splits.validation)
    print("FOUND", trainer.global_rank, json.dumps(found), flush=True)

main(int(sys.argv[1]))
"""


def measured(processes, tmp_path):
    script = tmp_path / "validate.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script), str(processes)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split(" ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("FOUND")]
    return {int(rank): json.loads(found) for rank, found in lines}


def test_two_processes_measure_what_one_measures(tmp_path):
    alone = measured(1, tmp_path)[0]
    together = measured(2, tmp_path)
    assert alone["images"] % 2, "an odd number of images is what padding would show on"
    assert sorted(together) == [0, 1]
    for found in together.values():
        assert found == pytest.approx(alone, abs=1e-12)
