"""Several processes train, validate, stop and write as one. Each test forks its own processes."""

import os
import signal
import time
from contextlib import suppress

import pytest
import torch
from helpers.many_ranks import on_ranks
from helpers.one_step import batches, norm_free_state, weights
from helpers.one_step import learn as learn_one_epoch
from helpers.tiny_training import CPU, NAMES, Drawn, build_state, outcome, same
from helpers.tiny_training import run as run_tiny
from timm.layers import BatchNormAct2d
from torch import nn

from segkit.compat import data_parallel
from segkit.data import DataError, create_transform, train_loader, val_loader
from segkit.data.batches import PADDING, TrainBatches
from segkit.errors import NotFiniteError
from segkit.losses import create_loss
from segkit.models import create_model
from segkit.training import (
    Interrupted,
    Ranks,
    StopSignals,
    autocast,
    distributed,
    ranks_of_torchrun,
    read_checkpoint,
    share_batch_norms,
    validate,
)
from segkit.training.checkpoint import random_states
from segkit.training.distributed import has_idle_parameters

FP32 = autocast(CPU, "off")


def run(out, **options):
    """Train with two images per batch and process, and padding in the last batch, if there are two processes."""
    return run_tiny(out, batch_size=4, **options)


def learn(data, ranks=Ranks(), loss="ce", **options):  # noqa: B008 - is frozen
    """Return weights, gradients and loss after an epoch."""
    state = norm_free_state(steps=9)
    loss = learn_one_epoch(state, data, loss, ranks=ranks, **options)
    gradients = torch.cat([p.grad.flatten() for p in state.model.parameters()])
    return weights(state), gradients, torch.tensor(loss)


def share_of(data, ranks):
    """Return the share of this process: every second, third ... sample of each batch."""
    return [(images[ranks.rank :: ranks.count], target[ranks.rank :: ranks.count]) for images, target in data]


@pytest.mark.parametrize("loss", ["ce", {"ce": 0.6, "bce": 0.4}])
def test_processes_learn_what_one_learns_from_the_whole_batch(tmp_path, loss):
    data = batches(4, 4, 3)  # one process has a single image of the last batch
    data[0][1][1::2] = 255  # the second process's share of the first batch is ignored
    expected = learn(data, loss=loss)
    for result in on_ranks(2, lambda ranks: learn(share_of(data, ranks), ranks, loss), tmp_path):
        torch.testing.assert_close(result[:2], expected[:2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"clip_grad": 0.01}, {"sam": 0.5}])
def test_accumulation_over_processes_equals_the_big_batch(tmp_path, options):
    expected = learn(batches(8), **options)

    def accumulated(ranks):
        return learn(share_of(batches(4, 4), ranks), ranks, accumulate=2, **options)

    for result in on_ranks(2, accumulated, tmp_path):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("images", "count"), [(7, 2), (7, 3), (2, 3)])
def test_scores_and_loss_are_the_same_for_any_number_of_processes(tmp_path, images, count):
    state = build_state()

    def score(ranks):
        loader = val_loader(Drawn(images), rank=ranks.rank, num_ranks=ranks.count)
        result = validate(state.model, loader, create_loss("ce"), device=CPU, autocast=FP32, ranks=ranks)
        return result.loss, result.scores.to_dict(), len(loader)

    loss, scores, _ = score(Ranks())
    results = on_ranks(count, score, tmp_path)
    assert [result[1] for result in results] == [scores] * count
    assert [result[0] for result in results] == pytest.approx([loss] * count, rel=1e-12)
    assert sum(result[2] for result in results) == images


@pytest.mark.parametrize(("length", "batch_size"), [(12, 4), (10, 4), (11, 4), (9, 4), (3, 4), (1, 2), (14, 12)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_processes_share_the_samples_of_each_batch(length, batch_size, ranks):
    whole = list(TrainBatches(length, batch_size, seed=3))
    parts = [list(TrainBatches(length, batch_size, seed=3, rank=rank, num_ranks=ranks)) for rank in range(ranks)]
    assert [len(part) for part in parts] == [len(whole)] * ranks
    for batch, *shares in zip(whole, *parts, strict=True):
        counted = [sample for share in shares for sample in share if len(sample) == 2]
        assert sorted(counted) == sorted(batch)
        assert min(map(len, shares)) >= (1 if ranks == 1 else min(2, batch_size // ranks))
        assert max(map(len, shares)) <= batch_size // ranks


def test_a_padding_sample_is_an_image_whose_target_is_ignored():
    loader = train_loader(Drawn(5), create_transform("flip", crop=32), batch_size=4, rank=1, num_ranks=2)
    samples = loader.dataset
    image, target = samples[3, 7, PADDING]
    assert torch.equal(image, samples[3, 7][0])
    assert (target == 255).all()
    assert [len(images) for images, _ in loader] == [2]


def test_a_batch_that_cannot_be_shared_is_an_error():
    message = "batches of 6 cannot be divided evenly among 4 processes; try `batch_size=8`"
    with pytest.raises(ValueError, match=message):
        train_loader(Drawn(8), create_transform("flip", crop=32), batch_size=6, num_ranks=4)


def test_only_the_first_process_writes_and_all_end_with_the_same_weights_and_averages(tmp_path):
    def train(ranks):
        state = run(tmp_path / "run" if ranks.is_first else tmp_path / f"none{ranks.rank}", ranks=ranks, save_every=2)
        return state.model.state_dict(), state.ema.module.state_dict(), state.history, state.best_epoch

    (tmp_path / "run").mkdir()
    first, second = on_ranks(2, train, tmp_path / "group")
    times = [row.pop("time") for row in first[2] + second[2]]
    assert len(times) == 4
    assert same(first, second)
    run(tmp_path / "alone")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted(
        p.name for p in (tmp_path / "alone").iterdir()
    )
    assert not list((tmp_path / "none1").iterdir())
    names = read_checkpoint(tmp_path / "run")[0]["model"]
    assert list(names) == list(read_checkpoint(tmp_path / "alone")[0]["model"])


# In a step, in validation, in the next epoch.
@pytest.mark.parametrize("before", [pytest.param(1, marks=pytest.mark.slow), 3, 6])
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path, before):
    def train(ranks):
        state = build_state()
        try:
            run(tmp_path / "run", ranks=ranks, state=state, stop_after=before if ranks.rank == 1 else None)
        except Interrupted as stop:
            return stop.number, state.epoch, state.step, state.updates

    first, second = on_ranks(2, train, tmp_path / "group")
    assert first == second
    content, _ = read_checkpoint(tmp_path / "run")
    assert first == (signal.SIGTERM, content["epoch"], content["step"], content["updates"])


def test_unused_layers_do_not_block_the_processes(tmp_path):
    def train(ranks):
        state = build_state(ema=0)
        state.model.decoder.idle = nn.Conv2d(3, 3, 1)
        run(tmp_path / "run", ranks=ranks, state=state, epochs=1)
        return state.updates, weights(state)

    first, second = on_ranks(2, train, tmp_path / "group")
    assert first[0] == second[0] == 3
    assert torch.equal(first[1], second[1])


def test_the_search_for_unused_layers_changes_nothing():
    model = build_state(ema=0).model.train()
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    assert not has_idle_parameters(model)
    assert same(dict(model.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with_head = create_model("fpn", backbone="test_resnet", num_classes=2, aux_head=True)
    assert has_idle_parameters(with_head)
    assert not has_idle_parameters(with_head, ["aux_head"])
    model.decoder.idle = nn.Conv2d(3, 3, 1)
    assert has_idle_parameters(model)
    model.decoder.idle.requires_grad_(False)
    assert not has_idle_parameters(model)


def test_a_stop_in_a_validation_does_not_wait_for_all_images_of_the_other_processes(tmp_path):
    state = build_state()

    def taken_images(ranks):
        taken, stops = [], iter([False, True])

        def check_stop():
            if ranks.rank == 1 and next(stops):
                raise Interrupted(signal.SIGTERM)

        def images():
            for number in range(9):
                if ranks.rank == 0 and number == 3:
                    ranks.store.wait(["stop"])
                taken.append(number)
                yield torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 32, 32, dtype=torch.uint8)

        options = {"device": CPU, "autocast": FP32, "check_stop": check_stop, "ranks": ranks}
        with pytest.raises(Interrupted, match="SIGTERM"):
            validate(state.model, images(), create_loss("ce"), **options)
        ranks.gather("the first one has deleted the key")
        return taken, ranks.store.check(["stop"])

    (first, *_), second = on_ranks(2, taken_images, tmp_path)
    assert len(first) <= 4
    assert second == ([0, 1], False)


@pytest.mark.parametrize("signalled", [0, 1])  # the process that waits for the other one, or for its batch
def test_a_signal_is_seen_while_one_process_waits_for_a_batch(tmp_path, monkeypatch, signalled):
    monkeypatch.setattr(distributed, "CHECK_EVERY", 0.05)

    def train(ranks):
        processes, state = ranks.gather(os.getpid()), build_state()

        def without_third_batch(batches):
            for number, batch in enumerate(batches):
                if (ranks.rank, number) == (1, 2):
                    os.kill(processes[signalled], signal.SIGTERM)
                    while True:
                        batches.while_waiting()
                        time.sleep(0.01)
                yield batch

        with StopSignals(patient=True) as stop, pytest.raises(Interrupted, match="SIGTERM"):
            run(tmp_path / "run", ranks=ranks, state=state, stop=stop, progress=without_third_batch)
        return state.step, read_checkpoint(tmp_path / "run")[0]["step"]

    assert on_ranks(2, train, tmp_path / "group") == [(2, 2), (2, 2)]


def test_a_signal_to_a_process_that_has_validated_its_images_stops_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "CHECK_EVERY", 0.05)
    state = build_state()

    def validated(ranks):
        def images():
            if ranks.rank == 1:
                os.kill(processes[0], signal.SIGTERM)
                while True:
                    ranks.check_between(stop.check)
                    time.sleep(0.01)
            yield torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 32, 32, dtype=torch.uint8)

        options = {"device": CPU, "autocast": FP32, "ranks": ranks}
        with StopSignals(patient=True) as stop:
            processes = ranks.gather(os.getpid())  # when all have their handlers
            with pytest.raises(Interrupted, match="SIGTERM"):
                validate(state.model, images(), create_loss("ce"), check_stop=stop.check, **options)
        return True

    assert on_ranks(2, validated, tmp_path) == [True, True]


@pytest.mark.parametrize(("asked", "epoch", "step"), [pytest.param(2, 0, 2, marks=pytest.mark.slow), (5, 1, 2)])
def test_the_first_process_saves_if_any_process_is_asked_to(tmp_path, asked, epoch, step):
    def train(ranks):
        calls = iter(range(1, 99))
        saved = []

        class SaveAsked(StopSignals):
            def save_asked(self):
                if (tmp_path / "run" / "last.pt").exists():
                    content, _ = read_checkpoint(tmp_path / "run")
                    saved.append((content["epoch"], content["step"]))
                return ranks.rank == 1 and next(calls) == asked

        run(tmp_path / "run", ranks=ranks, stop=SaveAsked())
        return saved

    first, second = on_ranks(2, train, tmp_path / "group")
    assert (epoch, step) in first
    assert (epoch, step) in second


def test_a_resumed_run_of_two_processes_equals_an_uninterrupted_one(tmp_path):
    def train(out, **options):
        def on_this_rank(ranks):
            try:
                run(tmp_path / out, ranks=ranks, **options)
            except Interrupted:
                return random_states(read_checkpoint(tmp_path / out)[0])

        return on_this_rank

    on_ranks(2, train("whole"), tmp_path / "1")
    randoms, _ = on_ranks(2, train("broken", stop_after=7), tmp_path / "2")
    assert len(randoms) == 2
    on_ranks(2, train("broken", resume=True), tmp_path / "3")
    assert same(outcome(tmp_path / "broken"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize(("before", "after"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_another_number_of_processes_takes_each_remaining_sample_once(tmp_path, before, after):
    def train(**options):
        def on_this_rank(ranks):
            seen = []

            def remember(loader):
                for samples, batch in zip(list(loader.batch_sampler), loader, strict=True):
                    seen.extend(samples)
                    yield batch

            with suppress(Interrupted):
                run(tmp_path / "run", ranks=ranks, epochs=1, progress=remember, **options)
            return seen

        return on_this_rank

    first = on_ranks(before, train(stop_after=0), tmp_path / "1")
    second = on_ranks(after, train(resume=True), tmp_path / "2")
    counted = [sample for part in first + second for sample in part if len(sample) == 2]
    assert sorted(counted) == sorted(sample for batch in TrainBatches(10, 4) for sample in batch)


class NaNOn(nn.Module):
    """A loss that is NaN in one process, in some of its calls."""

    def __init__(self, rank, ranks, calls):
        super().__init__()
        self.loss, self.bad, self.calls = create_loss("ce"), calls if rank == ranks.rank else (), 0

    def forward(self, logits, target):
        self.calls += 1
        return self.loss(logits, target) * (float("nan") if self.calls in self.bad else 1)


def test_a_loss_that_is_nan_in_one_process_skips_the_step_in_all_and_then_stops_all(tmp_path):
    def train(ranks):
        state = build_state()
        with pytest.raises(NotFiniteError, match="the loss is nan, as in 2 steps before it, in epoch 1, step 3"):
            run(tmp_path / "run", ranks=ranks, state=state, loss_fn=NaNOn(1, ranks, (1, 2, 3)))
        return state.updates, state.left_out, weights(state)

    first, second = on_ranks(2, train, tmp_path / "group")
    assert first[:2] == (2, 2)
    assert same(first, second)
    assert first[2].isfinite().all()


def test_early_stopping_and_an_unfrozen_backbone_agree(tmp_path):
    def train(ranks):
        state = build_state(epochs=9)
        before = state.model.backbone.state_dict()
        before = {name: value.clone() for name, value in before.items() if value.is_floating_point()}
        run(tmp_path / "run", ranks=ranks, state=state, epochs=9, early_stopping=2, freeze_backbone=1)
        after = state.model.backbone.state_dict()
        learnt = not all(torch.equal(value, after[name]) for name, value in before.items())
        return learnt, state.epoch, state.stale_epochs, weights(state)

    first, second = on_ranks(2, train, tmp_path / "group")
    assert same(first, second)
    learnt, epoch, stale, _ = first
    assert (learnt, stale) == (True, 2)
    assert epoch < 9


def test_a_full_disk_is_an_error_in_all_processes_at_the_end(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    def train(ranks):
        if ranks.is_first:
            monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="the run is finished, but could not be saved"):
            run(tmp_path / "run", ranks=ranks, epochs=1)

    on_ranks(2, train, tmp_path / "group")


def test_an_error_in_one_process_is_raised_in_all_and_reported_once(tmp_path):
    def read(ranks):
        with ranks.failing_together():
            if ranks.rank == 1:
                raise DataError("the image is damaged")

    def fail(ranks):
        with pytest.raises(DataError, match="the image is damaged") as caught:
            read(ranks)
        reports = [not getattr(caught.value, "is_reported", False)]
        with pytest.raises(ValueError, match="exists already") as caught:
            ranks.on_first(lambda: int("exists already"))
        return [*reports, not getattr(caught.value, "is_reported", False)]

    assert on_ranks(2, fail, tmp_path) == [[False, True], [True, False]]


def test_buffers_are_copied_once_when_a_model_is_wrapped_and_not_before_each_forward(tmp_path):
    def wrap(ranks):
        norm = nn.BatchNorm2d(1).eval()
        norm.running_mean.fill_(5.0 + ranks.rank)
        wrapped = data_parallel(norm)
        at_start = norm.running_mean.item()
        norm.running_mean.fill_(float(ranks.rank))
        wrapped(torch.zeros(1, 1, 2, 2))
        return at_start, norm.running_mean.item()

    assert on_ranks(2, wrap, tmp_path) == [(5.0, 0.0), (5.0, 1.0)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_items_are_shared_and_their_results_gathered_on_the_first_process(tmp_path, count):
    def work(ranks):
        share = list(ranks.share(iter(range(7))))
        return share, ranks.gather_on_first([10 * item for item in share])

    results = on_ranks(count, work, tmp_path)
    assert [share for share, _ in results] == [list(range(rank, 7, count)) for rank in range(count)]
    assert sorted(results[0][1]) == [0, 10, 20, 30, 40, 50, 60]
    assert [gathered for _, gathered in results[1:]] == [[]] * (count - 1)


@pytest.mark.parametrize("count", [1, 2])
def test_numbers_are_summed_in_double_precision(tmp_path, count):
    results = on_ranks(count, lambda ranks: ranks.sum_numbers(2**53 - 1, 0.1), tmp_path)
    assert results == [[count * (2**53 - 1), count * 0.1]] * count


def test_buffers_of_any_dtype_are_copied_from_the_first_process(tmp_path):
    def share(ranks):
        module = nn.BatchNorm2d(3)
        module.register_buffer("flag", torch.tensor([ranks.is_first] * 3))
        module.running_mean += ranks.rank
        module.num_batches_tracked += 5 - ranks.rank
        ranks.share_buffers(module)
        return module.state_dict()

    for state in on_ranks(2, share, tmp_path):
        assert state["running_mean"].tolist() == [0, 0, 0]
        assert state["num_batches_tracked"] == 5
        assert state["flag"].all()


def test_synchronised_batch_norms_are_off_on_a_cpu_with_one_warning(caplog):
    model = build_state().model
    assert share_batch_norms(model, "on", CPU, Ranks(0, 2)) is model
    assert [record.getMessage() for record in caplog.records] == [
        "`sync_bn` needs CUDA and is off on cpu: each process computes its own batch statistics"
    ]
    caplog.clear()
    for setting, ranks in (("auto", Ranks(0, 2)), ("on", Ranks(1, 2)), ("on", Ranks()), ("off", Ranks(0, 2))):
        assert share_batch_norms(model, setting, CPU, ranks) is model
    assert not caplog.records
    with pytest.raises(ValueError, match="unknown `sync_bn` 'maybe'"):
        share_batch_norms(model, "maybe", CPU)


def test_synchronised_batch_norms_keep_activations_weights_and_names():
    model = create_model("fpn", backbone="test_efficientnet", class_names=NAMES, pretrained=False).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, names = model(images), list(model.state_dict())
        assert any(isinstance(module, BatchNormAct2d) for module in model.modules())
        converted = share_batch_norms(model, "auto", torch.device("cuda"), Ranks(0, 2)).eval()
        assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
        torch.testing.assert_close(converted(images), expected)
    assert list(converted.state_dict()) == names


def test_a_single_process_does_not_use_torch_distributed(monkeypatch, tmp_path):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name in ("init_process_group", "all_reduce", "broadcast", "broadcast_object_list", "all_gather_object"):
        monkeypatch.setattr(torch.distributed, name, refuse)
    with ranks_of_torchrun("cpu") as ranks:
        run(tmp_path, ranks=ranks, epochs=1)
    assert ranks == Ranks()


def refuse(*args, **options):
    raise AssertionError("torch.distributed was asked")


@pytest.mark.parametrize(("device", "message"), [("mps", "trains in one process"), ("cuda:1", "use `device=cuda`")])
def test_devices_that_cannot_be_shared_are_refused(monkeypatch, device, message):
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match=message), ranks_of_torchrun(device):
        pass


def test_three_gpus_for_four_processes_are_refused(monkeypatch):
    for name, value in (("RANK", 0), ("WORLD_SIZE", 4), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    message = "4 processes, but this machine has only 3 GPUs; start torchrun with --nproc-per-node 3"
    with pytest.raises(ValueError, match=message), ranks_of_torchrun("auto"):
        pass
