"""train: data and settings in, a run folder out."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.cli.process import errors_as_sentences, reported_to_torchrun
from segkit.cli.run_report import RunReport
from segkit.cli.train_all_folds import train_all_folds
from segkit.cli.train_parts import architecture_of, build_loaders, build_loss, build_state
from segkit.cli.train_ranks import tell_ranks, told_by_the_first
from segkit.cli.train_rare import measure_rarity
from segkit.cli.train_report import (
    describe,
    epoch_line,
    finish,
    progress_bar,
    tell_absent,
    tell_replaced,
    tell_room,
    write_data_report,
)
from segkit.cli.train_restart import epochs_with_restart
from segkit.cli.train_resume import (
    DRAWN_LAST,
    goes_on,
    is_finished,
    is_resumed,
    read_run,
    resume,
    settings_of_run,
    settle,
)
from segkit.config import Setting, TrainConfig, parse_args, read_recipe, write_yaml
from segkit.errors import UsageError
from segkit.runs import RunLock

if TYPE_CHECKING:
    from segkit.data import SegmentationDataset
    from segkit.training import Ranks, TrainState

Load = Callable[[TrainConfig], tuple["SegmentationDataset", "SegmentationDataset"]]


def load_data(config: TrainConfig) -> tuple["SegmentationDataset", "SegmentationDataset"]:
    """Return the training and the validation images."""
    from segkit.workflows.datasets import load_data

    return load_data(config)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is the process's own by default. Under torchrun, one process of several."""
    reported_to_torchrun(run)(argv)


def run(argv: Sequence[str] | None) -> None:
    """Reads the settings, joins the other processes where there are some, and trains."""
    with errors_as_sentences("train", TrainConfig):
        config = parse_args(TrainConfig, argv, prog="train.py", start_from=_start_from)
        from segkit.training import ranks_of_torchrun, save_signal_ignored

        with save_signal_ignored(), ranks_of_torchrun(config.device) as ranks, told_by_the_first(ranks):
            config = ranks.on_first(lambda: settle(config))
            if config.fold == "all":
                _check_alone(ranks)
                train_all_folds(config, train)
            elif config.data or is_resumed(config):
                train(config, ranks)
            else:
                train_demo(config, ranks)


def _check_alone(ranks: "Ranks") -> None:
    if ranks.count > 1:
        raise UsageError("--fold all trains in one process; under torchrun give each --fold by its number, one by one")


def _start_from(config: TrainConfig) -> Mapping[str, Setting]:
    """The settings of the run that goes on; or the architecture of --init-from, and without data those of the demo."""
    if goes_on(config):
        return settings_of_run(config)
    demo = {} if config.data or config.recipe else read_recipe(TrainConfig, "demo", "no --data")
    return {**demo, **architecture_of(config.init_from)}


def train_demo(config: TrainConfig, ranks: "Ranks") -> None:
    """Draws the demo set, trains on it, and says how to go on."""
    from segkit.data import write_demo
    from segkit.runs import DEMO

    print(f"DEMO: no --data given, so segkit draws a small data set of its own in {DEMO} and trains on it.")
    train_json, val_json = ranks.on_first(lambda: write_demo(DEMO))
    out = train(replace(config, data=(train_json,), val=(val_json,)), ranks)
    print(
        "\nThis was the demo. Run `python infer.py`, or train on your own:\n"
        "  python train.py --data train.json --images photographs/ --model fpn --backbone tf_efficientnet_b3\n"
        f"What it has learnt, in curves and pictures: open {out / 'report.html'}"
    )


def train(
    config: TrainConfig, ranks: "Ranks | None" = None, *, load: Load = load_data, whole: Path | None = None
) -> Path:
    """Trains as the settings say; gives the run folder. Several processes train one model, and the first writes.

    Args:
        config: The settings.
        ranks: The processes; by default this one alone.
        load: Gives the training and validation images.
        whole: The folder by which an interrupted run goes on, where that is not its own.
    """
    from segkit.training import Ranks, release_memory

    with RunLock() as lock:
        out = _train(config, ranks or Ranks(), lock, load, whole)
    release_memory()  # for the next fold, whose workers would each copy it
    return out


def _train(config: TrainConfig, ranks: "Ranks", lock: RunLock, load: Load, whole: Path | None) -> Path:
    from segkit.training import (
        StopSignals,
        Trainer,
        TrainOptions,
        autocast,
        keep_memory,
        make_deterministic,
        seed_all,
    )
    from segkit.workflows.devices import pick_device

    if is_resumed(config):
        ranks.on_first(lambda: lock.take(config.out))
    checkpoint = ranks.on_first(lambda: read_run(config)) if is_resumed(config) else None
    if checkpoint and ranks.on_first(lambda: is_finished(config, checkpoint)):
        return config.out
    ranks.on_first(lambda: _check_folder(config, is_new=checkpoint is None))
    with ranks.failing_together():
        seed_all(config.seed)
        device = pick_device(config.device)
        if device.type == "cpu":
            keep_memory()
        if config.deterministic:
            make_deterministic()
        train_set, val_set = load(config)
        rarity = measure_rarity(config, train_set)
        loaders = build_loaders(config, train_set, val_set, rarity, ranks)
        loss_fn = build_loss(config, rarity).to(device)
        state = build_state(config, (train_set, val_set), len(loaders[0]), device, ranks)
    out = _open_run(config, state, checkpoint, lock, ranks)
    checkpoint = None  # as large as the run, which has it now
    print(describe(config, state.model, train_set, val_set, device, out))
    tell_ranks(config.batch_size, device, ranks)
    if ranks.is_first:
        write_data_report({"train": train_set, "val": val_set}, out)
    with closing(loaders[0]), closing(loaders[1]), StopSignals(patient=ranks.count > 1) as stop:
        loaders[1].start()
        report = RunReport(config, state, loaders[0], val_set, out, device) if ranks.is_first else None
        options = TrainOptions(
            epochs=config.epochs,
            accumulate=config.accumulate,
            clip_grad=config.clip_grad,
            sam=config.sam,
            freeze_backbone=config.freeze_backbone,
            val_every=config.val_every,
            early_stopping=config.early_stopping,
            save_every=config.save_every,
            compile=config.compile,
            exclude=train_set.ignored_labels,
        )
        trainer = Trainer(
            state,
            loss_fn,
            out,
            options,
            device=device,
            autocast=autocast(device, config.amp),
            ranks=ranks,
            stop=stop,
            progress=progress_bar if ranks.is_first else iter,
        )
        epochs = partial(trainer.fit, *loaders)
        with report or nullcontext(), _told_when_interrupted(whole or out, ranks):
            for epoch in epochs_with_restart(epochs, config, state, out, ranks):
                print(epoch_line(epoch, state, config.epochs), flush=True)
                if state.epoch == min(config.val_every, config.epochs):  # the first validation
                    tell_absent(epoch.scores, val_set.ignore_classes)
                if report:
                    report.update(state)
    tell_replaced(sorted(set(chain.from_iterable(ranks.gather(loaders[0].dataset.replaced)))))
    if report:
        finish(state, val_set, device, autocast(device, config.amp), out, report)
    return out


def _check_folder(config: TrainConfig, *, is_new: bool) -> None:
    """What can be said of the run folder before the data is read."""
    from segkit.runs import check_free, check_writable

    check_writable(config.out)
    if is_new:
        check_free(config.out, may_have_begun=config.resume == "auto")


def _open_run(
    config: TrainConfig, state: "TrainState", checkpoint: dict[str, Any] | None, lock: RunLock, ranks: "Ranks"
) -> Path:
    """Makes the run folder, when all the parts are there; or takes up the one to resume."""
    from segkit.runs import check_free, create_run_folder
    from segkit.training import seed_all

    def open_folder() -> Path:
        out = config.out
        if checkpoint is None:
            out = create_run_folder(config.out, "train", may_have_begun=config.resume == "auto")
            lock.take(out)
            if config.out is not None:  # one that started at the same time may have been faster
                check_free(out, may_have_begun=config.resume == "auto")
        (out / DRAWN_LAST).unlink(missing_ok=True)
        tell_room(state, out)
        write_yaml(replace(config, resume=False), out / "args.yaml")
        return out

    with ranks.failing_together():
        if checkpoint:
            resume(config, state, checkpoint, ranks)
        if not ranks.is_first:  # dropout of its own
            seed_all(config.seed + state.updates + ranks.rank)
    return ranks.on_first(open_folder)


@contextmanager
def _told_when_interrupted(out: Path, ranks: "Ranks") -> Iterator[None]:
    from segkit.training import Interrupted

    try:
        yield
    except Interrupted as stop:
        if ranks.is_first:
            outcome = "saved" if stop.error is None else "not saved: the state of before is kept, if there is one"
            print(f"\n{stop}; {outcome}. To go on: python train.py --resume {out}", file=sys.stderr)
        sys.exit(128 + stop.number)
