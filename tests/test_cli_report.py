"""`lossopt report` on anybody's vectors: a page beside them, and answers to what cannot work."""

import numpy as np
import pytest

from lossopt.cli import main


@pytest.fixture
def vectors(tmp_path):
    labels = np.arange(5).repeat(6)
    rng = np.random.default_rng(0)
    found = rng.normal(size=(5, 8))[labels] + 0.5 * rng.normal(size=(30, 8))
    path = tmp_path / "their vectors.npz"
    np.savez(path, vectors=found.astype("f4"), labels=np.array([f"kind {label}" for label in labels]))
    return path


def test_a_page_is_written_beside_the_vectors(vectors, capsys):
    assert main(["report", str(vectors), "--ks", "2", "5", "--distance", "cosine"]) == 0
    page = vectors.with_name("their vectors.html")
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text(encoding="utf-8")
    assert "recall@2 on these vectors" in text
    assert "lossopt report VECTORS --ks 2 5 --distance cosine" in text
    assert "kind 3" in text
    assert str(vectors.parent) not in text


def test_the_page_can_go_elsewhere(vectors, tmp_path, capsys):
    assert main(["report", str(vectors), "--output", str(tmp_path / "deep" / "page.html")]) == 0
    assert (tmp_path / "deep" / "page.html").is_file()
    assert not vectors.with_suffix(".html").exists()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--exclude", "all"], "has no groups"),
        (["--data.init_args.seed", "1"], "is no run"),
        (["--ks", "30"], "recall@30 was asked for"),
    ],
)
def test_what_cannot_work_is_said(vectors, words, answer, capsys):
    assert main(["report", str(vectors), *words]) in (2, 5)
    assert answer in capsys.readouterr().err
    assert not vectors.with_suffix(".html").exists()


def test_a_checkpoint_or_a_run_is_not_mistaken_for_vectors(vectors, tmp_path, capsys):
    (tmp_path / "x.ckpt").write_bytes(b"")
    assert main(["report", str(tmp_path / "x.ckpt")]) == 2
    assert "is no run" in capsys.readouterr().err
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert main(["report", str(tmp_path / "run"), "--labels", str(vectors)]) == 2
    assert "belong to vectors" in capsys.readouterr().err
