"""What the README says can be done, is done: Python blocks run, commands are understood, named files exist."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from lossopt import cli
from lossopt.config import instantiate, parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for kind, code in BLOCKS if kind == "python"]
COMMANDS = [line.split("  #")[0].strip() for kind, code in BLOCKS if kind == "bash" for line in code.splitlines()]
SMALL = ["--trainer.max_epochs", "1", "--data.init_args.batches_per_epoch", "3"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delitem(sys.modules, "my_miner", raising=False)  # of another test's folder
    (tmp_path / "configs").symlink_to(ROOT / "configs")


def test_the_blocks_are_found():
    assert len(PYTHON) == 2 and len(COMMANDS) >= 12


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command, capsys):
    words = shlex.split(command)
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        return
    assert words[0] == "lossopt" and words[1] in cli._JOBS
    if words[1] == "train" and "my_miner" not in command:
        rest = [word for word in words[2:] if word not in ("--resume", "--print_config")]
        instantiate(parse(rest))
    elif words[1] != "train":
        with pytest.raises(SystemExit) as stopped:
            cli.main([*words[1 : 3 if words[1] == "index" else 2], "--help"])
        assert stopped.value.code == 0
        known = capsys.readouterr().out
        assert all(word in known for word in words if word.startswith("--"))


def test_the_miner_of_the_readme_trains(tmp_path):
    (code,) = (code for code in PYTHON if "my_miner.py" in code)
    (tmp_path / "my_miner.py").write_text(code)
    (command,) = (command for command in COMMANDS if "my_miner" in command)
    assert cli.main([*shlex.split(command)[1:], *SMALL]) == 0


def test_the_miner_of_the_readme_is_compared_by_two_lines_of_its_plan(tmp_path, capsys):
    (code,) = (code for code in PYTHON if "my_miner.py" in code)
    (tmp_path / "my_miner.py").write_text(code)
    (plan,) = (code for kind, code in BLOCKS if kind == "yaml" and "my_plan.yaml" in code)
    small = plan.replace("seeds: 8 ", "seeds: 2 ").replace("images: 25600", "images: 128")
    assert small.count("seeds: 2") == small.count("images: 128") == 1
    (tmp_path / "my_plan.yaml").write_text(small + "validations: 1\n")
    assert cli.main(["compare", "my_plan.yaml"]) == 0
    assert "Not enough seeds for a verdict: 2 of at least 8." in capsys.readouterr().out
    table = (tmp_path / "runs" / "my_plan" / "table.md").read_text()
    assert all(name in table for name in ("farthest positive", "semi-hard", "random miner", "untrained", "raw pixels"))
    assert "farthest positive" in (tmp_path / "runs" / "my_plan" / "report.html").read_text()
    (tmp_path / "my_miner.py").write_text(code.replace("radius: float = 1.0", "radius: float = 0.5"))
    assert cli.main(["compare", "my_plan.yaml", "--dry-run"]) == 0
    assert "8 runs, 6 done already" in capsys.readouterr().out  # its own two runs were of other code


def test_the_python_block_runs(capsys, monkeypatch):
    (code,) = (code for code in PYTHON if "evaluate_retrieval" in code)
    exec(compile(code.replace('"1"])', '"1", *SMALL])'), "README.md", "exec"), {"SMALL": SMALL})
    assert "recall@10" in capsys.readouterr().out


def test_files_that_the_readme_names_exist():
    for name in set(re.findall(r"(?:configs|scripts)/[\w/]+\.(?:yaml|py|sh)", README)):
        assert (ROOT / name).is_file(), name


def test_every_config_is_a_mapping_with_a_name():
    for path in (ROOT / "configs").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["name"] == path.stem
