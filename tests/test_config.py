"""What a configuration may say, and the words in which a wrong one is answered: the nearest name, before any work."""

import inspect
from pathlib import Path

import pytest
import yaml

from lossopt.config import instantiate, parse, resolved
from lossopt.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
QUICK = ["--config", str(CONFIGS / "quickstart.yaml")]
MODEL, DATA = "--model.init_args", "--data.init_args"


def refusal(*words):
    with pytest.raises(ConfigError) as caught:
        instantiate(parse([*QUICK, *words]))
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--seeed", "3"], "Unknown key 'seeed'. Did you mean 'seed'?"),
        (["--trainr.max_epochs", "3"], "Did you mean 'trainer.max_epochs'"),
        (["--trainer.max_epoch", "3"], "Did you mean 'trainer.max_epochs'"),
        (["--trainer.max_epochs", "three"], "trainer.max_epochs: expected int. Got value: three"),
        (["--checkpoint.mode", "maximum"], "checkpoint.mode: got 'maximum', allowed are 'max', 'min'."),
        (["--model", "lossopt.modules.TripletNetwrk"], "Did you mean lossopt.modules.TripletNetwork?"),
        ([f"{MODEL}.loss_fn", "TripletLos"], "model.init_args.loss_fn: There is no class 'TripletLos'."),
        ([f"{MODEL}.loss_fn", "lossopt.losses.TripletLos"], "Did you mean lossopt.losses.TripletLoss"),
        ([f"{MODEL}.loss_fn.init_args.margn", "1"], "Unknown argument 'margn'. Did you mean 'margin'?"),
        ([f"{MODEL}.miner", "semi-hard"], "Did you mean lossopt.miners.SemiHardMiner?"),
        ([f"{MODEL}.miner", "pytorch_metric_learning.miners.BatchHardMinr"], "miners.BatchHardMiner"),
        ([f"{MODEL}.encoder.init_args.pooling", "max"], "got 'max', allowed are 'average', 'gem'."),
        ([f"{MODEL}.encoder.init_args.embeding_size", "8"], "Did you mean 'embedding_size'?"),
        ([f"{MODEL}.optimizer", "torch.optim.Adan"], "Did you mean torch.optim.Adam?"),
        ([f"{DATA}.images_per_clas", "4"], "Did you mean 'images_per_class'?"),
        ([f"{DATA}.source", "Digit"], "Did you mean lossopt.data.Digits?"),
        ([f"{DATA}.source", "nosuch.Thing"], "There is no module 'nosuch'"),
        (["--config", "nosuch.yaml"], "File does not exist"),
        (["--trainer.callbacks", "EarlyStoping"], "pytorch_lightning.callbacks.EarlyStopping"),
        (["--trainer.overfit_batches", "2"], "Unknown key 'trainer.overfit_batches'"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest_one(words, answer):
    assert answer in refusal(*words)


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ({"trainer": {"max_epoch": 3}}, "Unknown key 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'"),
        ({"trainr": {"max_epochs": 3}}, "Did you mean 'trainer.max_epochs'"),
        ({"model": {"init_args": {"loss_fn": {"init_args": {"margn": 3}}}}}, "Did you mean 'margin'?"),
    ],
)
def test_a_misspelt_key_in_a_file_likewise(tmp_path, content, answer):
    (tmp_path / "over.yaml").write_text(yaml.safe_dump(content))
    assert answer in refusal("--config", str(tmp_path / "over.yaml"))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([f"{MODEL}.loss_fn.init_args.margin", "-1"], "TripletLoss margin must be a finite number > 0, got -1.0"),
        (
            [f"{MODEL}.miner", "lossopt.miners.HardPairMiner"],
            "Use one of AllTripletsMiner, AngularMiner, BatchHardMiner",
        ),
        ([f"{MODEL}.miner", "pytorch_metric_learning.miners.PairMarginMiner"], "PairMarginMiner returns pairs"),
        (["--model", "lossopt.modules.SiameseNetwork"], "SiameseNetwork trains on pairs"),
    ],
)
def test_what_cannot_work_is_refused_with_the_valid_choice(words, answer):
    assert answer in refusal(*words)


def test_a_small_error_is_one_line():
    assert "\n" not in refusal("--seeed", "3")
    assert len(refusal(f"{MODEL}.loss_fn", "TripletLos")) < 200


def test_several_files_and_dotted_words_override_in_order(tmp_path):
    (tmp_path / "over.yaml").write_text("seed: 5\ntrainer: {max_epochs: 7}\n")
    config = resolved(parse([*QUICK, "--config", str(tmp_path / "over.yaml"), "--seed", "6"]))
    assert (config["seed"], config["trainer"]["max_epochs"]) == (6, 7)
    assert config["model"]["class_path"].endswith("TripletNetwork")


def test_the_resolved_configuration_is_complete_and_parses_to_itself():
    config = resolved(parse(QUICK))
    assert config["model"]["init_args"]["encoder"]["init_args"]["pooling"] == "average"
    assert resolved(parse(config=config)) == config


def test_every_loss_and_miner_of_pytorch_metric_learning_is_understood():
    from pytorch_metric_learning import losses, miners

    mandatory = {"num_classes": 20, "embedding_size": 32, "l": 2}
    for place, module, bases in (("loss_fn", losses, "Base"), ("miner", miners, "Base")):
        for name, thing in vars(module).items():
            if not isinstance(thing, type) or name.startswith(bases) or name.endswith(("Wrapper", "Mixin", "Memory")):
                continue
            if name in {
                "GenericPairLoss",
                "MultipleLosses",
                "SelfSupervisedLoss",
                "EmbeddingsAlreadyPackagedAsTriplets",
            }:
                continue
            words = [f"{MODEL}.{place}", f"{module.__name__}.{name}"]
            needed = inspect.signature(thing.__init__).parameters
            for argument in mandatory.keys() & needed.keys():
                words += [f"{MODEL}.{place}.{argument}", str(mandatory[argument])]
            parse([*QUICK, *words])


@pytest.mark.parametrize(
    ("kind", "loss", "miner"),
    [
        ("Siamese", "SupConLoss", None),
        ("Siamese", "ContrastiveLoss", "PairMarginMiner"),
        ("Siamese", "MultiSimilarityLoss", "MultiSimilarityMiner"),
        ("Triplet", "TripletMarginLoss", "TripletMarginMiner"),
        ("Triplet", "MarginLoss", "DistanceWeightedMiner"),
    ],
)
def test_pytorch_metric_learning_by_class_path(kind, loss, miner):
    words = ["--model", f"lossopt.modules.{kind}Network", f"{MODEL}.loss_fn", f"pytorch_metric_learning.losses.{loss}"]
    words += [f"{MODEL}.miner", f"pytorch_metric_learning.miners.{miner}" if miner else "null"]
    made = instantiate(parse([*QUICK, *words]))
    assert type(made.model.loss_fn).__name__ == loss


def test_a_distance_inside_a_loss_of_pytorch_metric_learning_is_made():
    distance = {"class_path": "pytorch_metric_learning.distances.CosineSimilarity"}
    loss = {"class_path": "pytorch_metric_learning.losses.TripletMarginLoss", "init_args": {"distance": distance}}
    made = instantiate(parse([*QUICK, f"{MODEL}.loss_fn", yaml.safe_dump(loss, default_flow_style=True)]))
    assert type(made.model.loss_fn.distance).__name__ == "CosineSimilarity"


def test_a_class_in_the_users_own_file(tmp_path, monkeypatch):
    (tmp_path / "my_loss.py").write_text(
        "import torch\n\nclass MeanDistance(torch.nn.Module):\n"
        "    def __init__(self, weight: float = 1.0):\n        super().__init__()\n        self.weight = weight\n"
        "    def forward(self, embeddings, labels, indices=None):\n"
        "        return self.weight * embeddings.pow(2).mean()\n"
    )
    monkeypatch.chdir(tmp_path)
    words = [f"{MODEL}.loss_fn", "my_loss.MeanDistance", f"{MODEL}.loss_fn.init_args.weight", "0.5"]
    assert instantiate(parse([*QUICK, *words])).model.loss_fn.weight == 0.5


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_parses_and_opens_with_its_command(path):
    made = instantiate(parse(["--config", str(path)]))
    assert made.name == path.stem
    first = path.read_text().splitlines()[0]
    assert first.startswith("# lossopt train --config configs/")
    assert first.split("--config ")[1].split()[0].endswith(path.name)
