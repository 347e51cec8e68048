"""A round of self-training: train, pseudo-label, retrain, through the three commands."""

import numpy as np
import pytest
from helpers.commands import SMALL
from helpers.shapes import write_shapes
from PIL import Image

from segkit.cli import infer, train
from segkit.config import TrainConfig, parse_args
from segkit.workflows.datasets import open_folds

SURE = {"background": 0.42, "square": 0.36, "disc": 0.36}


def label(teacher, source, out, *more):
    thresholds = ["--pseudo-threshold", "0.42", "--pseudo-class-thresholds", "square=0.36", "disc=0.36"]
    infer.main(
        [
            *("--weights", str(teacher), "--source", str(source), "--out", str(out), "--device", "cpu"),
            *thresholds,
            *more,
        ]
    )
    return out


def sure_pixels(out, name):
    """Return the label map, and which of its pixels reach the threshold of their class."""
    with np.load(out / "probs" / f"{name}.npz") as stored:
        probs = stored["probs"].astype(np.float32)
    mask = np.asarray(Image.open(out / "mask" / f"{name}.png"))
    return mask, probs.max(0) >= np.array(list(SURE.values()))[mask]


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("more"), "more", 5, seed=3).parent / "images"


def test_three_commands_train_on_what_the_first_model_is_sure_of(shapes, unlabelled, tmp_path, capsys):
    data = ["--data", str(shapes[0]), *SMALL, "--folds", "2"]
    train.main([*data, "--fold", "0", "--epochs", "2", "--out", str(tmp_path / "teacher")])
    every = label(
        tmp_path / "teacher", unlabelled, tmp_path / "a", "--save", "mask", "probs", "pseudo", "--pseudo-min-share", "0"
    )
    found = {f"more{i}": sure_pixels(every, f"more{i}") for i in range(5)}
    shares = sorted(sure.mean() for _, sure in found.values())
    assert 0 < shares[1] < shares[2] < 1
    least = (shares[1] + shares[2]) / 2
    label(tmp_path / "teacher", unlabelled, tmp_path / "b", "--save", "pseudo", "--pseudo-min-share", str(least))
    assert "sure enough for pseudo labels: 3 of 5 images" in capsys.readouterr().out

    more = ["--train-only", str(tmp_path / "b" / "pseudo.json"), "--images", str(shapes[0].parent), str(unlabelled)]
    retraining = [*data, *more, "--fold", "all", "--epochs", "1", "--out", str(tmp_path / "student")]
    folds = open_folds(parse_args(TrainConfig, retraining, prog="train.py"))
    accepted = {f"{name}.png" for name, (_, sure) in found.items() if sure.mean() >= least}
    for sets in (folds[0], folds[1]):
        names, held_out = ([part.name(i) for i in range(len(part))] for part in sets)
        assert accepted == {name for name in names if name.startswith("more")}
        assert not any(name.startswith("more") for name in held_out)
        for i, name in enumerate(names):
            if name in accepted:
                mask, sure = found[name.removesuffix(".png")]
                wrong = sets[0].target(i) != np.where(sure, mask, 255)
                assert wrong.mean() < 0.01  # probabilities are stored in float16
    train.main(retraining)
    assert capsys.readouterr().out.count("9 training and 6 validation images") == 2
