"""The learning rate: values worked out by hand, and plateaus in the right direction."""

import math

import pytest
import torch

from segkit.training.schedule import Plateau, create_scheduler


def optimizer(lr=1.0, **group):
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], **group}], lr=lr)


def rates(name, updates, **options):
    chosen = optimizer()
    schedule = create_scheduler(chosen, name, **options)
    found = []
    for update in range(updates):
        schedule.step_update(update)
        found.append(chosen.param_groups[0]["lr"])
    return found


def test_cosine_rises_over_the_warm_up_and_falls_to_zero():
    found = rates("cosine", 12, epochs=3, steps_per_epoch=4, warmup_epochs=1)
    assert found[:4] == pytest.approx([0.01 + 0.99 * i / 4 for i in range(4)])
    assert found[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])


def test_poly_has_the_power_of_deeplab():
    found = rates("poly", 10, epochs=2, steps_per_epoch=5)
    assert found == pytest.approx([(1 - i / 10) ** 0.9 for i in range(10)])


@pytest.mark.parametrize(
    ("name", "halfway"),
    [("cosine", 0.55), ("poly", 0.1 + 0.9 * 0.5**0.9), ("tanh", 0.1 + 0.45 * (1 - math.tanh(-2)))],
)
def test_schedules_fall_to_the_lowest_rate(name, halfway):
    found = rates(name, 5, epochs=4, steps_per_epoch=1, min_lr=0.1)
    assert [found[0], found[2], found[4]] == pytest.approx([1.0, halfway, 0.1])


def test_the_warm_up_begins_at_its_share_of_the_rate():
    found = rates("cosine", 5, epochs=3, steps_per_epoch=4, warmup_epochs=1, warmup_factor=0.1)
    assert found == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0])


def test_multistep_falls_at_its_milestones_counted_from_the_start():
    options = {"epochs": 6, "steps_per_epoch": 2, "warmup_epochs": 1}
    found = rates("multistep", 12, **options, milestones=(4, 2.5), plateau_factor=0.5)
    assert found[2:] == pytest.approx([1.0] * 3 + [0.5] * 3 + [0.25] * 4)
    assert found[0] == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_constant_stays_after_the_warm_up(name):
    found = rates(name, 9, epochs=3, steps_per_epoch=3, warmup_epochs=1)
    assert found[3:] == [1.0] * 6
    assert found[0] == pytest.approx(0.01)


@pytest.mark.parametrize("direction", ["min", "max"])
def test_a_plateau_falls_only_without_progress(direction):
    sign = -1 if direction == "max" else 1
    plateau = Plateau(direction, patience=2)
    for score in (5, 4, 3, 2):
        plateau.step(10 + sign * score)
    assert plateau.factor == 1
    for score in (2, 2, 2.5):
        assert plateau.factor == 1
        plateau.step(10 + sign * score)
    assert plateau.factor == 0.1


@pytest.mark.parametrize("direction", ["min", "max"])
def test_a_plateau_equals_torchs(direction):
    random = torch.Generator().manual_seed(0)
    scores = torch.rand(60, generator=random).tolist()
    theirs = optimizer()
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, mode=direction, patience=2)
    ours = Plateau(direction, patience=2)
    for score in scores:
        reference.step(score)
        ours.step(score)
        if ours.factor > 1e-7:  # torch makes no changes smaller than 1e-8
            assert ours.factor == pytest.approx(theirs.param_groups[0]["lr"])


def test_a_plateau_falls_by_its_factor_after_its_patience_and_stops_at_the_lowest_rate():
    chosen = optimizer(lr_scale=0.5)
    options = {"patience": 0, "plateau_factor": 0.5, "min_lr": 0.2}
    schedule = create_scheduler(chosen, "plateau", epochs=9, steps_per_epoch=1, **options)
    found = []
    for epoch in range(6):
        schedule.step_update(epoch)
        found.append(chosen.param_groups[0]["lr"])
        schedule.end_epoch(loss=1.0, miou=0.0)
    assert found == pytest.approx([0.5, 0.5, 0.25, 0.125, 0.1, 0.1])


@pytest.mark.parametrize(("monitor", "falls"), [("loss", False), ("miou", True)])
def test_the_monitor_decides_the_direction(monitor, falls):
    chosen = optimizer()
    schedule = create_scheduler(chosen, "plateau", epochs=9, steps_per_epoch=1, monitor=monitor)
    for epoch in range(5):
        schedule.step_update(epoch)
        schedule.end_epoch(loss=1 - epoch / 10, miou=0.5 - epoch / 10)
    schedule.step_update(5)
    assert (chosen.param_groups[0]["lr"] < 1) == falls


def test_a_nan_is_no_progress():
    plateau = Plateau("min", patience=0)
    plateau.step(float("nan"))
    assert plateau.factor == pytest.approx(0.1)


def test_scaled_groups_keep_their_share():
    chosen = optimizer(lr_scale=0.1)
    schedule = create_scheduler(chosen, "plateau", epochs=9, steps_per_epoch=1)
    schedule.plateau.factor = 0.5
    schedule.step_update(3)
    assert chosen.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_scheduler(optimizer(), "linear", epochs=1, steps_per_epoch=1), "unknown schedule 'linear'"),
        (
            lambda: create_scheduler(optimizer(), "plateau", epochs=1, steps_per_epoch=1, monitor="iou"),
            "unknown `monitor` .*Known: loss, miou",
        ),
        (lambda: Plateau("up"), "`direction` must be 'min' or 'max'"),
    ],
)
def test_unknown_names_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["cosine", "poly", "tanh", "multistep", "plateau", "constant"])
def test_a_single_step_has_the_highest_rate_and_no_warning(name, caplog):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    create_scheduler(optimizer, name, epochs=1, steps_per_epoch=1, warmup_epochs=1).step_update(0)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not caplog.records
