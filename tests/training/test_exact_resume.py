"""A run that is interrupted and resumed equals an uninterrupted run, bit for bit."""

import random

import numpy as np
import pytest
import torch
from helpers.tiny_training import build_state, interrupted, outcome, run, same

from segkit.losses import create_loss
from segkit.models import Preprocessing, load_model
from segkit.training import read_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return outcome(out)


# In validation, in the second epoch, in a step, between epochs.
@pytest.mark.parametrize("stop_after", [6, 12, *(pytest.param(calls, marks=pytest.mark.slow) for calls in (1, 9))])
def test_a_run_interrupted_anywhere_equals_an_uninterrupted_one(whole, tmp_path, stop_after):
    assert interrupted(tmp_path, stop_after)
    run(tmp_path, resume=True)
    assert same(outcome(tmp_path), whole)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_run_interrupted_many_times_equals_an_uninterrupted_one(whole, tmp_path, workers):
    stops = np.random.default_rng(workers).integers(1, 9, 40).tolist()
    resume = False
    while interrupted(tmp_path, stops.pop(), resume=resume, workers=workers):
        resume = True
    assert resume
    assert same(outcome(tmp_path), whole)


def test_saving_within_an_epoch_changes_nothing(whole, tmp_path):
    run(tmp_path, save_every=2)
    assert same(outcome(tmp_path), whole)


def test_accumulation_resumes_exactly(tmp_path):
    options = {"accumulate": 2}
    run(tmp_path / "a", **options)
    assert interrupted(tmp_path / "b", 1, **options)
    assert read_checkpoint(tmp_path / "b")[0]["step"] == 4
    run(tmp_path / "b", resume=True, **options)
    assert same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        pytest.param({"val_every": 2}, {}, marks=pytest.mark.slow),
        ({"freeze_backbone": 1}, {}),
        pytest.param({}, {"layer_decay": 0.9, "backbone_lr_factor": 0.5}, marks=pytest.mark.slow),
        ({"amp": "fp16"}, {"amp": "fp16"}),
    ],
)
@pytest.mark.parametrize(
    "stop_after", [pytest.param(1, marks=pytest.mark.slow), 9]
)  # in the first epoch, in the second
def test_other_options_resume_exactly(tmp_path, options, parts, stop_after):
    run(tmp_path / "a", state=build_state(**parts), **options)
    assert interrupted(tmp_path / "b", stop_after, state=build_state(**parts), **options)
    run(tmp_path / "b", resume=True, state=build_state(**parts), **options)
    assert same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))


def test_plateau_and_patience_survive_a_resume(tmp_path):
    def state():
        return build_state(epochs=6, schedule="plateau", lr=1e-6)

    run(tmp_path / "a", epochs=6, state=state())
    assert interrupted(tmp_path / "b", 43, epochs=6, state=state())
    stopped = read_checkpoint(tmp_path / "b")[0]
    assert stopped["epoch"] == 4
    assert stopped["scheduler"]["plateau"]["best"] < 2
    run(tmp_path / "b", resume=True, epochs=6, state=state())
    assert same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))


def test_a_preprocessing_other_than_the_backbones_survives_a_resume(tmp_path):
    def state():
        state = build_state()
        for model in (state.model, state.ema.module):
            model.preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)
        return state

    run(tmp_path / "a", state=state())
    assert interrupted(tmp_path / "b", 3, state=state())
    run(tmp_path / "b", resume=True)  # its model is built with the preprocessing of the backbone
    assert same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))
    assert load_model(tmp_path / "b").preprocessing.mean == (0.5, 0.5, 0.5)


class Drawing(torch.nn.Module):
    """A loss that draws random numbers of Python, numpy and torch."""

    def __init__(self):
        super().__init__()
        self.loss = create_loss("ce")

    def forward(self, logits, target):
        drawn = random.random() + np.random.rand() + torch.rand(1).item()  # noqa: NPY002 - the global state is under test
        return self.loss(logits, target) * (1 + drawn)


def test_random_numbers_of_python_numpy_and_torch_are_those_of_an_uninterrupted_run(tmp_path):
    run(tmp_path / "a", loss_fn=Drawing())
    assert interrupted(tmp_path / "b", 3, loss_fn=Drawing())
    run(tmp_path / "b", resume=True, loss_fn=Drawing())
    assert same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))
