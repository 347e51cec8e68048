"""train_run: one training run, from its settings and its data to the finished run folder."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import chain
from typing import Any

import torch

from segkit.config import TrainConfig, default_of, write_yaml
from segkit.console import Console
from segkit.data import SegmentationDataset
from segkit.data.loaders import Loader
from segkit.errors import NotFiniteError
from segkit.inference import Predictor, segment_dataset
from segkit.metrics import ConfusionMatrix, PerImageConfusion, Scores
from segkit.models import Segmenter, load_model
from segkit.report.gallery import Gallery
from segkit.report.run import CELL, RunFacts, RunReport, RunResults
from segkit.runs import RunFolder, RunLock
from segkit.training import (
    EpochReport,
    Interrupted,
    Precision,
    Ranks,
    StopSignals,
    Tracking,
    Trainer,
    TrainState,
    autocast,
    checkpoint_bytes,
    keep_memory,
    make_deterministic,
    seed_all,
)
from segkit.training.checkpoint import save_progress
from segkit.workflows.datasets import write_data_report
from segkit.workflows.environment import pick_device, write_environment
from segkit.workflows.parts import build_loaders, build_loss, build_model, build_options, build_state, measure_rarity
from segkit.workflows.run_text import (
    count_parameters,
    epoch_line,
    finished_text,
    next_commands,
    plan_text,
    replaced_text,
    scores_text,
    setting_text,
)
from segkit.workflows.start import find_start, load_run, position, read_run, resume_run

_log = logging.getLogger(__name__)
SLOWER = 0.5  # factor of the learning rate after a restart
Sets = tuple[SegmentationDataset, SegmentationDataset]


@dataclass(frozen=True)
class Session:
    """What this process is while it trains.

    Attributes:
        ranks: This process among those that train one model together.
        console: Prints what is going on, in the first process.
        command: The command line that env.json records; empty in a program that calls segkit.
        may_keep_memory: Whether `keep_memory` may set up the process for a training on a CPU.
    """

    ranks: Ranks
    console: Console
    command: str = ""
    may_keep_memory: bool = False


@dataclass(frozen=True)
class TrainResult:
    """A finished training run.

    Attributes:
        folder: The run folder with the model, its scores and report.html.
        best_miou: Best validation mIoU, in [0, 1].
        best_epoch: The epoch that reached it, from 1; the model is of this epoch.
        history: A row of results.csv for each epoch.
        class_names: Names of the classes, in label order.
        was_finished: Whether the run was finished already, so that nothing was trained.
        is_demo: Whether it was trained on the drawn demo images.
    """

    folder: RunFolder
    best_miou: float
    best_epoch: int
    history: tuple[Mapping[str, float], ...] = field(repr=False)
    class_names: tuple[str, ...]
    was_finished: bool = False
    is_demo: bool = False

    def load(self) -> Segmenter:
        """Return the best model, on the CPU and in eval mode."""
        return load_model(self.folder.path)


def train_run(config: TrainConfig, open_sets: Callable[[], Sets], session: Session, lock: RunLock) -> TrainResult:
    """Train one model, draw its report, and return the result.

    Several processes train one model together, and the first one writes.

    Args:
        config: The settings.
        open_sets: Returns the training and the validation images; not called if there is nothing to do.
        session: What this process is.
        lock: Locks the run folder.

    Raises:
        Interrupted: Ctrl-C or SIGTERM has come. The state is saved; the attribute `run` is the run folder.
        NotFiniteError: The loss or the gradient is not finite in several steps.
        UsageError: A setting, the data or the folder cannot be used.
    """
    ranks, console = session.ranks, session.console
    start = ranks.on_first(lambda: find_start(config, lock))
    is_resumed = start.checkpoint is not None
    if start.is_finished(config.epochs, config.early_stopping):
        run = RunFolder(start.folder)
        if ranks.on_first(run.val_predictions.is_file):
            console.print(finished_text(run, start.checkpoint, config.epochs))
            return finished_result(run, start.checkpoint)
        console.print(f"{run} is finished, but its pictures are missing: they are drawn now")
    ranks.on_first(start.check_folder)

    with ranks.failing_together():
        seed_all(config.seed)
        device = pick_device(config.device)
        if session.may_keep_memory and device.type == "cpu":
            keep_memory()
        if config.deterministic:
            make_deterministic()
        train_set, val_set = open_sets()
        rarity = measure_rarity(config, train_set, console)
        train_batches, val_batches = build_loaders(config, train_set, val_set, rarity, ranks)
        loss = build_loss(config, rarity).to(device)
        model = build_model(config, train_set.class_names, device, ranks, console, is_resumed=is_resumed)
        state = build_state(config, model, (train_set, val_set), len(train_batches), device)
        if is_resumed:
            resume_run(state, start.checkpoint, ranks, allow_data_change=config.allow_data_change)
            console.print(f"resuming {start.folder} {position(state)}")
        if not ranks.is_first:
            seed_all(config.seed + state.updates + ranks.rank)  # Dropout must differ between the processes.

    run = ranks.on_first(partial(start.open_folder, lock))
    del start  # Its checkpoint is as large as the state, which holds the same values now.
    ranks.on_first(lambda: _begin_folder(run, config, state))
    console.print(plan_text(config, run, model, train_set, val_set, device, ranks))
    if ranks.is_first:
        write_data_report({"train": train_set, "val": val_set}, run.data_report)
    precision = autocast(device, config.amp)
    epochs_before = state.epoch
    with ExitStack() as at_end:
        with (
            closing(train_batches),
            closing(val_batches),
            StopSignals(patient=ranks.count > 1) as stop,
            _folder_in_interrupts(run),
        ):
            val_batches.start()  # Each worker copies the memory of this process, which is still small.
            if ranks.is_first:
                report = _create_report(config, run, state, train_batches, val_set, device, session.command)
                tracking = at_end.enter_context(Tracking(config.log, run.path, report.facts.settings, state.history))
            trainer = Trainer(
                state,
                loss,
                run.path,
                build_options(config, train_set.ignored_labels),
                device=device,
                autocast=precision,
                ranks=ranks,
                stop=stop,
                progress=partial(console.progress, unit="batch"),
            )
            may_restart = config.nan_policy == "restart"
            for epoch in epochs_with_restart(trainer, train_batches, val_batches, may_restart=may_restart):
                console.print(epoch_line(epoch, state, config.epochs))
                if not ranks.is_first:
                    continue
                if state.epoch == min(config.val_every, config.epochs):  # the first validation
                    _warn_of_absent_classes(epoch.scores, val_set.ignore_classes)
                tracking.log(state.history[-1])
                report.update(results_of(state))
        if state.epoch == epochs_before:  # `epochs` was lowered: the checkpoint does not say yet that it is finished.
            save_progress(state, run.path, ranks)
        replaced = sorted(set(chain.from_iterable(ranks.gather(train_batches.dataset.replaced))))
        if replaced:
            console.print(replaced_text(replaced))
        if ranks.is_first:
            gallery = Gallery(len(val_set), 2 * CELL)  # twice the size that is shown, for smooth outlines
            confusion = score_best(run, val_set, device, precision, console, gallery)
            report.finish(results_of(state), confusion, gallery)
            tracking.show(report.pictures, state.epoch)
    console.print(scores_text(run, results_of(state), model.class_names, val_set.ignore_classes))
    return TrainResult(run, state.best_miou, state.best_epoch, tuple(state.history), tuple(model.class_names))


def finished_result(run: RunFolder, checkpoint: Mapping[str, Any]) -> TrainResult:
    """Return the result of a run that was finished before."""
    return TrainResult(
        run,
        checkpoint["best_miou"],
        checkpoint["best_epoch"],
        tuple(checkpoint["history"]),
        tuple(checkpoint["class_names"]),
        was_finished=True,
    )


def _begin_folder(run: RunFolder, config: TrainConfig, state: TrainState) -> None:
    """Write args.yaml, remove the picture that is drawn last, and warn if the disk is too full for the checkpoints."""
    run.val_predictions.unlink(missing_ok=True)
    # Two checkpoints are kept while a third one is written.
    free, needed = shutil.disk_usage(run.path).free, 3 * checkpoint_bytes(state)
    if free < needed:
        _log.warning("%s has room for %.0f MB, but the run needs about %.0f MB", run, free / 1e6, needed / 1e6)
    write_yaml(replace(config, resume=False), run.args)


@contextmanager
def _folder_in_interrupts(run: RunFolder) -> Iterator[None]:
    """Note the run folder in an Interrupted that passes, for the message that says how to resume."""
    try:
        yield
    except Interrupted as stop:
        stop.run = run.path
        raise


def epochs_with_restart(trainer: Trainer, train: Loader, val: Loader, *, may_restart: bool) -> Iterator[EpochReport]:
    """Yield the epochs of a training; after a NotFiniteError, once more from the last save at half the learning rate.

    Args:
        trainer: The training.
        train: The training batches.
        val: The validation batches.
        may_restart: Whether to restart at all.

    Raises:
        NotFiniteError: Restarts are off, nothing has been saved yet, or the run was restarted before.
    """
    state, ranks, run = trainer.state, trainer.ranks, RunFolder(trainer.out)
    try:
        yield from trainer.epochs(train, val)
        return
    except NotFiniteError as error:
        has_save = ranks.on_first(lambda: run.has_checkpoint)
        if not may_restart or state.scheduler.factor != 1 or not has_save:
            raise
        problem = str(error)  # the error itself would keep the failed step in memory
    content = ranks.on_first(lambda: read_run(run))
    load_run(state, content, allow_data_change=True, rank=ranks.rank)
    del content
    state.scheduler.factor = SLOWER
    if ranks.is_first:
        _log.warning("%s; restarting from %s, %s, at half the learning rate", problem, run.last, position(state))
    yield from trainer.epochs(train, val)


def score_best(
    run: RunFolder,
    data: SegmentationDataset,
    device: torch.device,
    precision: Precision,
    console: Console,
    gallery: Gallery | None = None,
) -> ConfusionMatrix:
    """Return the confusion matrix of the best model of a run.

    Args:
        run: The run folder.
        data: The validation images; few of them are in memory at a time.
        device: The device to run on.
        precision: Returns the autocast context that the run was validated in, so that the scores are the same.
        console: Shows the progress.
        gallery: Is offered each image with its prediction.
    """
    # The memory format of the validation, too: the scores are the same to the last pixel.
    model = load_model(run.path).to(device, memory_format=torch.channels_last)
    names, options = data.class_names, {"class_names": data.class_names, "exclude": data.ignored_labels}
    total = ConfusionMatrix(len(names), **options)
    with precision():
        found = segment_dataset(data, Predictor(model, device=device, probs="none"))
        for index, one in enumerate(console.progress(found, total=len(data))):
            confusion = PerImageConfusion(len(names), **options)
            confusion.update(one.prediction.mask, one.target)
            total += confusion.total()
            if gallery is not None:
                gallery.offer(data.name(index), one.image, one.target, one.prediction.mask, confusion)
    return total


def _warn_of_absent_classes(scores: Scores, ignored: Sequence[str]) -> None:
    names = [name for name, pixels in zip(scores.class_names, scores.support, strict=True) if not pixels]
    names = [name for name in names if name not in ignored]
    if names:
        _log.warning("no validation image shows %s: the IoU of such a class cannot be measured", ", ".join(names))


def results_of(state: TrainState) -> RunResults:
    """Return what a run has reached."""
    return RunResults(state.history, state.best_epoch, state.best_miou, state.best_weights)


def _create_report(
    config: TrainConfig,
    run: RunFolder,
    state: TrainState,
    train_batches: Loader,
    val_set: SegmentationDataset,
    device: torch.device,
    command: str,
) -> RunReport:
    """Write env.json and train_batch.png, and return the report for the epochs."""
    texts = {setting.name: setting_text(getattr(config, setting.name)) for setting in fields(config)}
    changed = {name for name in texts if getattr(config, name) != default_of(config, name)}
    environment = write_environment(run.environment, device, command)
    facts = RunFacts(
        class_names=state.model.class_names,
        model=f"{config.model} on {config.backbone}",
        parameters=count_parameters(state.model),
        images=(len(train_batches.dataset), len(val_set)),
        epochs=config.epochs,
        settings=texts,
        changed=changed - {"out", "resume"},
        commands=next_commands(config, run),
        environment={name: str(value) for name, value in environment.items()},
    )
    report = RunReport(run, facts)
    first = next(iter(train_batches.batch_sampler))[:8]
    images, target = zip(*(train_batches.dataset[sample] for sample in first), strict=True)
    report.draw_batch([image.permute(1, 2, 0).numpy() for image in images], [labels.numpy() for labels in target])
    return report
