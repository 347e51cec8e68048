"""A run that is interrupted and resumed equals one that was not, bit for bit."""

import random

import numpy as np
import pytest
import torch
from tiny_training import CPU, build_state, interrupted, outcome, run, same

from segkit.training import autocast, read_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return outcome(out)


@pytest.mark.parametrize("stop_after", [1, 6, 9, 12])  # in a step, in validation, between epochs, in the next one
def test_a_run_interrupted_anywhere_equals_a_whole_one(whole, tmp_path, stop_after):
    assert interrupted(tmp_path, stop_after)
    run(tmp_path, resume=True)
    assert same(outcome(tmp_path), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_interrupted_at_random_again_and_again_equals_a_whole_one(whole, tmp_path, workers):
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
        ({"val_every": 2}, {}),
        ({"freeze_epochs": 1}, {}),
        ({}, {"layer_decay": 0.9, "backbone_lr_factor": 0.5}),
        ({"autocast": autocast(CPU, "fp16")}, {"amp": "fp16"}),
    ],
)
@pytest.mark.parametrize("stop_after", [1, 9])  # in the first epoch and in the second
def test_other_ways_of_learning_resume_exactly(tmp_path, options, parts, stop_after):
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


def test_random_states_of_python_and_numpy_are_restored(tmp_path):
    assert interrupted(tmp_path, 3)
    expected = read_checkpoint(tmp_path)[0]["random"]
    random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002 - the global states are meant
    assert interrupted(tmp_path, 0, resume=True)
    resumed = read_checkpoint(tmp_path)[0]["random"]
    assert resumed["python"] == expected["python"]
    assert same(resumed["numpy"], expected["numpy"])


def test_an_extended_run_keeps_its_epochs_and_its_best(tmp_path):
    short = run(tmp_path, epochs=1)
    longer = run(tmp_path, resume=True, epochs=3)
    assert [row["epoch"] for row in longer.history] == [1, 2, 3]
    assert longer.history[0] == short.history[0]
    assert longer.best_miou >= short.best_miou
