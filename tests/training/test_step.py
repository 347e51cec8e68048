"""One training step: accumulation, precision, clipping, and losses that are not finite."""

import copy
import math

import pytest
import torch
from helpers.one_step import batches, learn, norm_free_state, weights
from helpers.tiny_training import build_state, interrupted, loaders, run
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.errors import NotFiniteError
from segkit.losses import create_loss
from segkit.training import StopSignals, create_optimizer, create_scheduler, read_checkpoint
from segkit.training.step import BufferBackup, pixel_shares, windows


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
    assert learn(state, batches(4), amp=amp) == pytest.approx(learn(full, batches(4)), abs=0.02)


class Poisoned(nn.Module):
    """A loss that is NaN in some calls, counted from 0."""

    def __init__(self, bad):
        super().__init__()
        self.bad, self.calls, self.loss = set(bad), -1, create_loss("ce")

    def forward(self, logits, target):
        self.calls += 1
        return self.loss(logits, target) * (float("nan") if self.calls in self.bad else 1.0)


class PoisonedSteps(nn.Module):
    """A loss that is NaN in some training steps, counted from 0, and never in a validation."""

    def __init__(self, bad):
        super().__init__()
        self.bad, self.calls, self.loss = set(bad), -1, create_loss("ce")

    def forward(self, logits, target):
        self.calls += logits.requires_grad
        return self.loss(logits, target) * (float("nan") if logits.requires_grad and self.calls in self.bad else 1.0)


def test_a_loss_that_is_not_finite_never_reaches_the_weights():
    state = norm_free_state(steps=4)
    learn(state, batches(2))
    before = weights(state)
    with pytest.raises(NotFiniteError, match="the loss is nan, as in 2 steps before it, in epoch 1, step 4; try"):
        learn(state, batches(2, 2, 2), Poisoned([0, 1, 2]))
    assert torch.equal(weights(state), before)


@pytest.mark.parametrize("options", [{}, {"clip_grad": 1.0}, {"sam": 0.1}])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(options, bad):
    state = norm_free_state()
    before = weights(state)
    state.model.last.weight.register_hook(lambda gradient: gradient * bad)
    with pytest.raises(NotFiniteError, match="the gradient is not finite, as in 2 steps before it"):
        learn(state, batches(2, 2, 2), **options)
    assert torch.equal(weights(state), before)


class AfterEachStep(StopSignals):
    """Calls a function after each step, where the trainer asks for signals."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def check(self):
        self.function()


def all_values(state):
    return [value.clone() for model in (state.model, state.ema.module) for value in model.state_dict().values()]


@pytest.mark.parametrize("options", [{}, {"sam": 0.05}, {"accumulate": 2}])
def test_a_skipped_step_changes_neither_weights_nor_statistics_nor_the_mean_loss(options, caplog):
    state, seen = build_state(ema=0.5), []
    train, _ = loaders()
    stop = AfterEachStep(lambda: seen.append(all_values(state)))
    passes = options.get("accumulate", 1) * (2 if "sam" in options else 1)
    mean = learn(state, train, Poisoned([passes]), stop=stop, **options)
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        f"the loss is nan in epoch 1, step {1 + options.get('accumulate', 1)}; this step is skipped"
    ]
    assert all(torch.equal(before, after) for before, after in zip(seen[0], seen[1], strict=True))
    assert not all(torch.equal(before, after) for before, after in zip(seen[1], seen[2], strict=True))
    assert state.step == 5
    assert state.updates == len(seen)
    assert state.image_count == 10 - 2 * options.get("accumulate", 1)
    assert math.isfinite(mean)


class Counting(nn.Module):
    """Counts its calls in one buffer, and replaces another one: statistics of another kind than batch norms'."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.seen = x.detach().mean()
        return x


def test_a_skipped_step_does_not_change_the_buffers_of_other_layers():
    state = norm_free_state(steps=3)
    state.model.last = nn.Sequential(state.model.last, counting := Counting())
    seen = []
    stop = AfterEachStep(lambda: seen.append((counting.calls.item(), counting.seen.item())))
    learn(state, batches(2, 2, 2), Poisoned([1]), stop=stop)
    assert [calls for calls, _ in seen] == [1, 1, 2]
    assert seen[0] == seen[1]
    assert seen[1][1] != seen[2][1]


def test_fp16_undoes_the_statistics_of_a_loss_that_is_not_finite():
    state = build_state(amp="fp16")

    def overflow(module, inputs):
        return (inputs[0] * float("inf"),)

    train, _ = loaders()
    state.model.backbone.register_forward_pre_hook(overflow)
    learn(state, train)
    assert all(buffer.isfinite().all() for buffer in state.model.buffers())


@pytest.mark.parametrize(
    ("amp", "bad"), [("off", [1, 3]), ("off", [2, 6]), ("off", [0, 1, 5, 9]), ("fp16", [1, 2, 3, 4])]
)
def test_steps_that_are_not_finite_are_skipped_and_logged_with_their_images(tmp_path, caplog, amp, bad):
    state = run(tmp_path, state=build_state(amp=amp), loss_fn=PoisonedSteps(bad))
    assert (state.epoch, state.updates, state.left_out) == (2, 10, 0)
    assert weights(state).isfinite().all()
    lines = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(lines) == len(bad)
    batches = loaders()[0].batch_sampler
    batches.epoch, number = divmod(bad[0], 5)
    first, second = (index for index, _ in list(batches)[number])
    assert lines[0] == (
        f"the loss is nan in epoch {batches.epoch + 1}, step {number + 1}; this step is skipped "
        f"(images: {first}, {second})"
    )


def test_the_third_step_of_an_epoch_that_is_not_finite_stops(tmp_path):
    state = build_state()
    with pytest.raises(NotFiniteError, match="the loss is nan, as in 2 steps before it, in epoch 2, step 4"):
        run(tmp_path, state=state, loss_fn=PoisonedSteps([0, 5, 7, 8]))
    assert read_checkpoint(tmp_path)[0]["epoch"] == 1
    assert weights(state).isfinite().all()


@pytest.mark.parametrize(("accumulate", "allowed"), [(1, 5), (2, 2), (4, 2)])
def test_one_step_in_a_hundred_may_be_skipped_however_many_batches_it_has(accumulate, allowed):
    data = batches(1) * 500
    state = norm_free_state(steps=500)
    learn(state, data, Poisoned([accumulate * i for i in range(allowed)]), accumulate=accumulate)
    assert state.left_out == allowed
    state = norm_free_state(steps=500)
    with pytest.raises(NotFiniteError):
        learn(state, data, Poisoned([accumulate * i for i in range(allowed + 1)]), accumulate=accumulate)


def test_the_number_of_skipped_steps_survives_a_resume(tmp_path):
    bad = PoisonedSteps([0, 1, 3])
    with pytest.raises(NotFiniteError, match="step 4"):
        run(tmp_path / "a", loss_fn=bad)
    assert interrupted(tmp_path / "b", 2, loss_fn=PoisonedSteps([0, 1, 3]))
    with pytest.raises(NotFiniteError, match="step 4"):
        run(tmp_path / "b", resume=True, loss_fn=PoisonedSteps([0]))


def test_fp16_skips_steps_that_overflow_and_continues():
    state = norm_free_state(amp="fp16", steps=3)
    mean = learn(state, batches(2, 2, 2), Poisoned([1]))
    assert state.updates == 3
    assert state.scaler.get_scale() == 2.0**15
    assert weights(state).isfinite().all()
    assert mean == mean


def test_fp16_stops_after_twenty_overflows_in_a_row():
    state = norm_free_state(amp="fp16", steps=40)
    data = batches(*[1] * 40)
    with pytest.raises(NotFiniteError, match="20 times in a row in epoch 1, step 23; try `amp=bf16`"):
        learn(state, data, Poisoned(range(3, 40)))
    assert state.updates == 22


def test_a_gradient_that_overflows_in_fp16_is_expected_until_the_scale_fits(caplog):
    state = norm_free_state(amp="fp16", steps=3)
    before, seen, overflows = weights(state), [], iter([math.inf, math.inf, 1.0])
    state.model.last.weight.register_hook(lambda gradient: gradient * next(overflows))
    mean = learn(state, batches(1, 1, 1), stop=AfterEachStep(lambda: seen.append(weights(state))))
    assert torch.equal(seen[1], before)
    assert not torch.equal(seen[2], before)
    assert state.scaler.get_scale() == 2.0**14
    assert (state.updates, state.left_out, state.overflows, state.image_count) == (3, 0, 0, 3)
    assert math.isfinite(mean)
    assert not caplog.records


def test_the_average_of_the_weights_follows_its_decay():
    state = build_state(ema=0.5, epochs=1)
    train, _ = loaders()
    seen = []
    learn(state, train, stop=AfterEachStep(lambda: seen.append(state.model.head.weight.detach().clone())))
    expected = seen[0]
    for step, value in enumerate(seen[1:], start=1):
        decay = min(0.5, 1 - (1 + step) ** (-2 / 3))
        expected = expected * decay + value * (1 - decay)
    torch.testing.assert_close(state.ema.module.head.weight, expected)


def test_a_frozen_backbone_keeps_weights_and_statistics_and_learns_afterwards(tmp_path):
    state = build_state(epochs=2)
    before = copy.deepcopy(state.model.backbone.state_dict())
    run(tmp_path, state=state, epochs=1, freeze_backbone=1)
    assert all(torch.equal(value, before[key]) for key, value in state.model.backbone.state_dict().items())
    run(tmp_path, state=state, epochs=2, freeze_backbone=1)
    assert not any(torch.equal(p, before[name]) for name, p in state.model.backbone.named_parameters())


class PlainCrossEntropy(nn.Module):
    """A loss that reads no value on the host."""

    def forward(self, logits, target):
        return nn.functional.cross_entropy(logits, target.long(), ignore_index=255)


class ScalarReads(TorchDispatchMode):
    """Counts reads of a single value: `tensor.item()`, `float(tensor)`, `if tensor`."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


class TensorReads(TorchFunctionMode):
    """Counts reads of whole tensors: `tensor.tolist()`, `tensor.cpu()`, `tensor.numpy()`."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += getattr(function, "__name__", None) in ("tolist", "cpu", "numpy", "__array__")
        return function(*args, **(kwargs or {}))


def test_the_counters_see_each_kind_of_read():
    with ScalarReads() as scalars, TensorReads() as tensors:
        x = torch.ones(())
        assert x.item() == float(x) == x
        assert math.isfinite(x)
        x.tolist()
        x.cpu()
        x.numpy()
    assert (scalars.count, tensors.count) == (4, 3)


@pytest.mark.parametrize(
    ("options", "amp"),
    [({}, "off"), ({"clip_grad": 1.0}, "off"), ({"sam": 0.1, "clip_grad": 1.0}, "bf16"), ({}, "fp16")],
)
def test_a_step_reads_values_from_the_device_once(options, amp):
    state = build_state(ema=0.9, amp=amp)
    state.optimizer = create_optimizer(state.model, "sgd", lr=0.1)  # Adam counts its steps on the host
    state.scheduler = create_scheduler(state.optimizer, epochs=2, steps_per_epoch=5)
    data = list(loaders()[0])
    with ScalarReads() as scalars, TensorReads() as tensors:
        learn(state, data, PlainCrossEntropy(), amp=amp, **options)
    assert state.updates == len(data) == 5
    assert scalars.count + tensors.count == 5


class CopiedTensors(TorchDispatchMode):
    """Collects the ids of the tensors that are copied."""

    def __init__(self):
        super().__init__()
        self.sources = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.clone.default:
            self.sources.add(id(args[0]))
        elif function in (torch.ops.aten.copy_.default, torch.ops.aten._foreach_copy_.default):
            self.sources.update(map(id, args[1] if isinstance(args[1], list) else [args[1]]))
        return function(*args, **(kwargs or {}))


def test_only_buffers_that_change_are_copied_before_a_step():
    state = build_state()
    state.model.register_buffer("constant", constant := torch.ones(1000))
    backup = BufferBackup(state.model)
    backup.save()
    with CopiedTensors() as copied:
        backup.save()
    norms = [module for module in state.model.modules() if hasattr(module, "running_mean")]
    assert copied.sources == {id(buffer) for norm in norms for buffer in norm.buffers()} != set()
    state.model.freeze_backbone()
    with CopiedTensors() as copied:
        backup.save()
    assert copied.sources == set()  # all norms are in the backbone, in eval mode now
    constant += 1
    with CopiedTensors() as copied:
        backup.save()
    assert copied.sources == {id(constant)}
