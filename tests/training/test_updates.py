"""What one update does: accumulation, precision, clipping, and numbers that are not finite."""

import copy
import math

import pytest
import torch
from tiny_training import CPU, NAMES, build_state, interrupted, loaders, run
from torch import nn

from segkit.losses import create_loss
from segkit.models.preprocessing import Preprocessing
from segkit.training import (
    autocast,
    create_optimizer,
    create_scaler,
    create_scheduler,
    read_checkpoint,
    train_one_epoch,
)
from segkit.training.accumulation import pixel_shares, windows
from segkit.training.distributed import Ranks
from segkit.training.not_finite import leave_out
from segkit.training.state import TrainState


class NormFree(nn.Module):
    """Two convolutions: no statistics of the batch, so that the parts of a batch can be added up."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, len(NAMES), 1)
        self.preprocessing = Preprocessing((0.5,) * 3, (0.2,) * 3)

    def forward(self, images):
        return self.last(self.first(images).relu())


def norm_free_state(*, lr=0.1, optimizer="sgd", amp="off", steps=1):
    torch.manual_seed(0)
    model = NormFree()
    optimizer = create_optimizer(model, optimizer, lr=lr)
    return TrainState(
        model,
        optimizer,
        create_scheduler(optimizer, "constant", epochs=1, steps_per_epoch=steps),
        create_scaler(CPU, amp),
    )


def batches(*sizes, seed=0):
    """Random batches in which the share of ignored pixels differs from image to image."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (sum(sizes), 3, 8, 8), generator=random, dtype=torch.uint8)
    target = torch.randint(3, (sum(sizes), 8, 8), generator=random, dtype=torch.uint8)
    for i, one in enumerate(target):
        one[: 7 * i // sum(sizes)] = 255
    return list(zip(images.split(list(sizes)), target.split(list(sizes)), strict=True))


def learn(state, data, loss="ce", **options):
    return train_one_epoch(state, data, create_loss(loss), device=CPU, autocast=autocast(CPU, "off"), **options)


def weights(state):
    return torch.cat([p.detach().flatten() for p in state.model.parameters()])


@pytest.mark.parametrize("loss", ["ce", "bce", {"ce": 0.6, "bce": 0.4}])
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_accumulated_batches_equal_the_big_batch(loss, clip):
    big, small = norm_free_state(), norm_free_state()
    learn(big, batches(6), loss, clip_grad=clip)
    learn(small, batches(2, 2, 2), loss, clip_grad=clip, accumulate=3)
    torch.testing.assert_close(weights(small), weights(big), rtol=0, atol=1e-6)


def test_a_last_window_that_is_smaller_makes_an_update_too():
    state = norm_free_state(steps=2)
    learn(state, batches(2, 2, 2), accumulate=2)
    assert (state.updates, state.step) == (2, 3)
    assert [len(window) for window in windows(range(5), 2)] == [2, 2, 1]


def test_pixel_shares_count_valid_pixels():
    targets = [torch.tensor([[[0, 255]]]), torch.tensor([[[1, 2]]]), torch.tensor([[[255, 255]]])]
    assert pixel_shares(targets) == ([1 / 3, 2 / 3, 0], 3)
    assert pixel_shares([targets[2]] * 2) == ([0, 0], 2)
    assert pixel_shares([targets[2]]) == ([1.0], 1)


def test_fp16_gradients_are_unscaled_before_they_are_clipped():
    plain, scaled = norm_free_state(), norm_free_state(amp="fp16")
    for state in (plain, scaled):
        learn(state, batches(4), clip_grad=0.01)
    assert scaled.scaler.get_scale() == 2.0**16
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=0, atol=1e-6)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_close_to_full_precision(amp):
    state, full = norm_free_state(amp=amp), norm_free_state()
    loss = create_loss("ce")
    mixed = train_one_epoch(state, batches(4), loss, device=CPU, autocast=autocast(CPU, amp))
    assert mixed == pytest.approx(learn(full, batches(4)), abs=0.02)


class Poisoned(nn.Module):
    """A loss that is NaN for some calls."""

    def __init__(self, bad):
        super().__init__()
        self.bad, self.calls, self.loss = set(bad), -1, create_loss("ce")

    def forward(self, logits, target):
        self.calls += 1
        return self.loss(logits, target) * (float("nan") if self.calls in self.bad else 1.0)


class PoisonedSteps(nn.Module):
    """A loss that is NaN in some steps, counted from the first; not in validation."""

    def __init__(self, bad):
        super().__init__()
        self.bad, self.calls, self.loss = set(bad), -1, create_loss("ce")

    def forward(self, logits, target):
        self.calls += logits.requires_grad
        return self.loss(logits, target) * (float("nan") if logits.requires_grad and self.calls in self.bad else 1.0)


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights():
    state = norm_free_state(steps=3)
    learn(state, batches(2))
    before = weights(state)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, step 2; try a lower --lr"):
        train_one_epoch(state, batches(2), Poisoned([0]), device=CPU, autocast=autocast(CPU, "off"))
    assert torch.equal(weights(state), before)


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights():
    state = norm_free_state()
    before = weights(state)
    state.model.last.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="the gradient is not finite"):
        learn(state, batches(2), clip_grad=1.0)
    assert torch.equal(weights(state), before)


def test_without_clipping_a_gradient_that_is_not_finite_stops_too():
    state = norm_free_state()
    state.model.last.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="the gradient is not finite"):
        learn(state, batches(2))


def test_a_step_that_is_left_out_changes_neither_weights_nor_statistics_nor_the_mean_loss():
    state, told, seen = build_state(ema=0.5), [], []
    train, _ = loaders()

    def remember():
        values = [*state.model.state_dict().values(), *state.ema.module.state_dict().values()]
        seen.append([value.clone() for value in values])

    mean = train_one_epoch(
        state,
        train,
        Poisoned([2]),
        device=CPU,
        autocast=autocast(CPU, "off"),
        after_update=remember,
        on_not_finite=lambda state, problem, batches: told.append((state.step, problem, batches)),
    )
    assert told == [(2, "the loss is nan", 1)]
    assert all(torch.equal(before, after) for before, after in zip(seen[1], seen[2], strict=True))
    assert not all(torch.equal(before, after) for before, after in zip(seen[2], seen[3], strict=True))
    assert (state.step, state.updates, state.image_count) == (5, 5, 8)
    assert math.isfinite(mean)


def test_fp16_leaves_out_the_statistics_of_a_loss_that_is_not_finite():
    state = build_state(amp="fp16")

    def overflow(module, inputs):
        return (inputs[0] * float("inf"),)

    train, _ = loaders()
    state.model.backbone.register_forward_pre_hook(overflow)
    train_one_epoch(state, train, create_loss("ce"), device=CPU, autocast=autocast(CPU, "off"))
    assert all(buffer.isfinite().all() for buffer in state.model.buffers())


@pytest.mark.parametrize(
    ("amp", "bad"), [("off", [1, 3]), ("off", [2, 6]), ("off", [0, 1, 5, 9]), ("fp16", [1, 2, 3, 4])]
)
def test_steps_that_are_not_finite_are_left_out_and_logged_with_their_images(tmp_path, caplog, amp, bad):
    state = run(tmp_path, state=build_state(amp=amp), loss_fn=PoisonedSteps(bad))
    assert (state.epoch, state.updates, state.left_out) == (2, 10, 0)
    assert weights(state).isfinite().all()
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(lines) == len(bad)
    batches = loaders()[0].batch_sampler
    batches.epoch, number = divmod(bad[0], 5)
    first, second = (index for index, _ in list(batches)[number])
    assert lines[0] == (
        f"the loss is nan in epoch {batches.epoch + 1}, step {number + 1}, which is left out "
        f"(images: {first}, {second})"
    )


def test_the_third_step_of_an_epoch_that_is_not_finite_stops(tmp_path):
    state = build_state()
    with pytest.raises(FloatingPointError, match="the loss is nan, as in 2 steps before it, in epoch 2, step 4"):
        run(tmp_path, state=state, loss_fn=PoisonedSteps([0, 5, 7, 8]))
    assert read_checkpoint(tmp_path)[0]["epoch"] == 1
    assert weights(state).isfinite().all()


@pytest.mark.parametrize(("accumulate", "borne"), [(1, 16), (4, 4), (8, 2), (16, 2)])
def test_one_step_in_a_hundred_may_be_left_out_however_many_batches_it_has(accumulate, borne):
    train, _ = loaders(batch_size=2)
    train.batch_sampler.length = 3200  # 1600 batches
    told, state = leave_out(train, Ranks(rank=1, count=2), accumulate=accumulate), build_state()
    for _ in range(borne):
        told(state, "the loss is nan", accumulate)
    with pytest.raises(FloatingPointError):
        told(state, "the loss is nan", accumulate)


def test_steps_left_out_survive_a_resume(tmp_path):
    bad = PoisonedSteps([0, 1, 3])
    with pytest.raises(FloatingPointError, match="step 4"):
        run(tmp_path / "a", loss_fn=bad)
    assert interrupted(tmp_path / "b", 2, loss_fn=PoisonedSteps([0, 1, 3]))
    with pytest.raises(FloatingPointError, match="step 4"):
        run(tmp_path / "b", resume=True, loss_fn=PoisonedSteps([0]))


def test_fp16_leaves_out_updates_that_overflow_and_goes_on():
    state = norm_free_state(amp="fp16", steps=3)
    mean = train_one_epoch(state, batches(2, 2, 2), Poisoned([1]), device=CPU, autocast=autocast(CPU, "off"))
    assert state.updates == 3
    assert state.scaler.get_scale() == 2.0**15
    assert weights(state).isfinite().all()
    assert mean == mean


def test_fp16_stops_after_twenty_overflows_in_a_row():
    state = norm_free_state(amp="fp16", steps=40)
    data = batches(*[1] * 40)
    with pytest.raises(FloatingPointError, match=r"20 times in a row .* try --amp bf16"):
        train_one_epoch(state, data, Poisoned(range(3, 40)), device=CPU, autocast=autocast(CPU, "off"))
    assert state.updates == 23


def test_the_average_of_the_weights_follows_by_its_decay():
    state = build_state(ema=0.5, epochs=1)
    train, _ = loaders()
    seen = []

    def remember():
        seen.append(state.model.head.weight.detach().clone())

    train_one_epoch(state, train, create_loss("ce"), device=CPU, autocast=autocast(CPU, "off"), after_update=remember)
    expected = seen[0]
    for step, value in enumerate(seen[1:], start=1):
        decay = min(0.5, 1 - (1 + step) ** (-2 / 3))
        expected = expected * decay + value * (1 - decay)
    torch.testing.assert_close(state.ema.module.head.weight, expected)


def test_a_frozen_backbone_keeps_weights_and_statistics_and_learns_afterwards(tmp_path):
    state = build_state(epochs=2)
    before = copy.deepcopy(state.model.backbone.state_dict())
    run(tmp_path, state=state, epochs=1, freeze_epochs=1)
    assert all(torch.equal(value, before[key]) for key, value in state.model.backbone.state_dict().items())
    run(tmp_path, state=state, epochs=2, freeze_epochs=1)
    assert not any(torch.equal(p, before[name]) for name, p in state.model.backbone.named_parameters())
