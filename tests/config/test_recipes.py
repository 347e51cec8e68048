"""Every recipe can be built, and the recipes of the recycled-waste solutions have the settings of these solutions."""

import math

import pytest
import timm
import torch

from segkit.config import TrainConfig, parse_args
from segkit.config.recipes import RECIPES, recipe_names
from segkit.data import create_transform
from segkit.errors import UsageError
from segkit.models import DECODERS, create_model
from segkit.workflows import parts
from segkit.workflows.parts import Rarity

WASTE1 = [name for name in recipe_names() if name.startswith("waste1-")]
WASTE2 = [name for name in recipe_names() if name.startswith("waste2-")]


def load(name, *words):
    return parse_args(TrainConfig, ["--recipe", name, "--data", "a.json", *words], prog="train.py")


def tiny_model():
    return create_model("fpn", backbone="test_resnet", num_classes=3, pretrained=False, channels=8)


def rates(config, at, steps_per_epoch=10):
    """The learning rates at the given epochs."""
    optimizer = parts.build_optimizer(config, tiny_model())
    schedule = parts.build_schedule(config, optimizer, steps_per_epoch=steps_per_epoch)
    found = []
    for epoch in at:
        schedule.step_update(round(epoch * steps_per_epoch))
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_built(name):
    config = load(name)
    assert config.recipe == name
    assert config.model in DECODERS
    assert timm.is_model(config.backbone.split(".")[0])
    assert config.pretrained != "true" or timm.models.is_model_pretrained(config.backbone)
    create_transform(config.augment, crop=config.crop)
    assert all(0 < rate <= config.lr for rate in rates(config, [0.1, 1, config.epochs / 2]))
    loss = parts.build_loss(config, Rarity())
    value = loss(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long))
    assert math.isfinite(value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_what_it_is_in_its_first_line(name):
    first = (RECIPES / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert 10 < len(first) <= 110


def test_the_first_solution_rises_to_ten_times_its_rate_and_follows_a_cosine_over_39_epochs():
    assert len(WASTE1) == 5
    for name in WASTE1:
        found = rates(load(name), [0, 0.5, 1, 1 + 39 / 4, 1 + 39 / 2, 40 - 0.1], steps_per_epoch=40)
        cosine = [0.5 * (1 + math.cos(math.pi * share)) for share in (0.25, 0.5, 1 - 4 / (39 * 40))]
        assert found == pytest.approx([3e-5, 16.5e-5, 3e-4, *(3e-4 * factor for factor in cosine)])


def test_the_first_solution_ignores_unknown_and_lets_everything_decay():
    for config in map(load, WASTE1):
        assert (config.ignore_classes, config.overlap) == (("UNKNOWN",), "max-id")
        assert config.augment == ("seed1-fpn" if config.model == "fpn" else "seed1")
        assert (config.clip_grad, config.label_smoothing, config.batch_size) == (5, 0.05, 24)
        optimizer = parts.build_optimizer(config, tiny_model())
        assert type(optimizer) is torch.optim.Adam
        assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-6}


def test_the_second_solution_waits_for_the_validation_loss_to_fall():
    assert len(WASTE2) == 6
    for config in map(load, WASTE2):
        optimizer = parts.build_optimizer(config, tiny_model())
        schedule = parts.build_schedule(config, optimizer, steps_per_epoch=1)
        found = []
        for epoch, loss in enumerate([1.0, 0.9, 0.9, 0.9, 0.9, 0.8]):
            schedule.step_update(epoch)
            found.append(optimizer.param_groups[0]["lr"])
            schedule.end_epoch(loss=loss, miou=loss)
        assert found == pytest.approx(5 * [1e-4] + [1e-5])


def test_the_second_solution_comes_in_both_readings_of_its_loss():
    for text, code in zip(WASTE2[::2], WASTE2[1::2], strict=True):
        assert load(text).loss == {"bce": 0.6, "dice": 0.4}
        assert load(code).loss == {"ce": 0.6, "dice": 0.4}
        assert load(code).label_smoothing == 0.1
        same = load(text, "--recipe", code)
        assert same == load(code)


def test_the_second_solution_has_the_dice_of_smp():
    for config in map(load, WASTE2):
        dice = parts.build_loss(config, Rarity()).losses["dice"]
        # All 12 classes have the probability 1/12, so the Dice of the only class that occurs is 2/12 / (1/12 + 1).
        value = dice(torch.zeros(1, 12, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long))
        assert value.item() == pytest.approx((1 - 2 / 13) / 12)


def test_a_loss_without_dice_needs_the_recipe_without_its_option():
    with pytest.raises(UsageError, match=r"`loss_option` has dice.absent, but the loss is ce; .* \(recipe waste2"):
        load(WASTE2[0], "--loss", "ce")
    assert load(WASTE2[0], "--loss", "ce", "--loss-option").loss_option == {}


def test_settings_of_the_schedule_reach_it():
    words = ["--warmup-epochs", "2", "--warmup-factor", "0.5", "--min-lr", "1e-3", "--lr", "1e-2", "--epochs", "4"]
    plain = parse_args(TrainConfig, ["--data", "a.json", *words], prog="train.py")
    assert rates(plain, [0, 1, 2, 3, 4]) == pytest.approx([5e-3, 7.5e-3, 1e-2, 5.5e-3, 1e-3])
    config = load(WASTE1[0], "--schedule", "multistep", "--milestones", "3", "10")
    assert rates(config, [2, 5, 20]) == pytest.approx([3e-4, 3e-5, 3e-6])
    words = ["--schedule", "plateau", "--patience", "0", "--plateau-factor", "0.5", "--monitor", "miou"]
    config = parse_args(TrainConfig, ["--data", "a.json", *words], prog="train.py")
    schedule = parts.build_schedule(config, parts.build_optimizer(config, tiny_model()), steps_per_epoch=1)
    for miou in (0.5, 0.4, 0.6):
        schedule.end_epoch(loss=1.0, miou=miou)
    assert schedule.plateau.factor == 0.5
