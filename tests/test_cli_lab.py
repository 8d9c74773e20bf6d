"""`lossopt lab`: one page with everything that is computed, and clear words for what cannot be drawn."""

import pkgutil
import re
import sys
import types

import pytest

from lossopt.cli import main
from lossopt.commands import lab


@pytest.fixture
def quick(monkeypatch):
    """Without the networks, whose training has tests of its own."""
    monkeypatch.setattr("lossopt.lab.activity.activities", list)


def test_the_page_holds_all_pieces_and_is_small_enough_to_mail(tmp_path, capsys, quick):
    out = tmp_path / "deep" / "page.html"
    assert main(["lab", "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"\npage: {out}\n")
    text = out.read_text(encoding="utf-8")
    assert len(text.encode()) < 3e6
    for anchor in ("regression", "classification", "embedding", "activations", "paths", "descent", "lines", "triplet"):
        assert f'<section id="{anchor}">' in text
    for words in ("MSLE", "softminus", "Rosenbrock", "Adagrad, full matrix", "ravine", "Beale", "lossopt lab runs/"):
        assert words in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["autoencodr"], "no run at autoencodr, and no grid .* one of autoencoder, multitask, optimizers"),
        ([".", "--points", "4"], "points is 4; give an odd number"),
        (["--points", "9"], "--points belongs to the map of a run: lossopt lab RUN --points"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["lab", *words]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("lossopt lab: ") and re.search(message, said.err)
    assert said.out == ""  # refused before anything is computed
    assert not list(tmp_path.iterdir())


def test_a_grid_gets_the_words_behind_its_name(monkeypatch):
    got = []
    home = types.ModuleType("made_up_grids")
    home.autoencoder = got.append
    monkeypatch.setitem(sys.modules, "made_up_grids", home)
    monkeypatch.setitem(lab._GRIDS, "autoencoder", "made_up_grids:autoencoder")
    assert main(["lab", "autoencoder", "plan.yaml", "--dry-run"]) == 0
    assert got == [["plan.yaml", "--dry-run"]]


@pytest.mark.parametrize("name", lab._GRIDS)
def test_every_grid_is_where_the_table_says(name):
    job = pkgutil.resolve_name(lab._GRIDS[name])
    assert callable(job) and job.__name__ == name


def test_help_names_the_grids(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["lab", "--help"])
    assert ended.value.code == 0
    assert "autoencoder" in capsys.readouterr().out
