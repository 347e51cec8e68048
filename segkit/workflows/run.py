"""train_run: one training run, from its settings and its data to the finished run folder."""

import json
import logging
import os
import platform
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from segkit._version import __version__
from segkit.config import TrainConfig, default_of, import_words, write_yaml
from segkit.console import Console, counted, percent, table
from segkit.data import SegmentationDataset
from segkit.data.loaders import Loader
from segkit.data.rasterize import OVERLAP_TEXTS
from segkit.errors import NotFiniteError, SegkitError, is_out_of_memory
from segkit.files import free_name, write_whole
from segkit.inference import Predictor, segment_dataset
from segkit.metrics import ConfusionMatrix, PerImageConfusion, Scores
from segkit.models import Segmenter, load_model, read_header
from segkit.report.gallery import Gallery
from segkit.report.run import CELL, RunFacts, RunReport, RunResults
from segkit.runs import RunFolder, RunLock, check_free, check_writable, create_run_folder, run_to_resume
from segkit.sliding_window import SlidingWindow
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
    load_state,
    make_deterministic,
    read_checkpoint,
    seed_all,
)
from segkit.training.checkpoint import (
    changed_data,
    foreign_best,
    match_best,
    photographs_warning,
    random_states,
    save_progress,
)
from segkit.training.state import has_ended
from segkit.training.validation import AUTO_WINDOW, memory_errors_explained
from segkit.workflows.datasets import (
    check_model_classes,
    data_rules,
    has_masks,
    have_split,
    rule_of_folds,
    sources_of,
    write_data_report,
)
from segkit.workflows.parts import (
    build_loaders,
    build_loss,
    build_model,
    build_options,
    build_state,
    check_batch_memory,
    check_names,
    fixed_settings,
    measure_rarity,
    own_modules,
)
from segkit.workflows.predictors import count_cores, pick_device, pick_workers

_log = logging.getLogger(__name__)
SLOWER = 0.5  # factor of the learning rate after a restart
# The packages whose versions are in env.json.
PACKAGES = ("torch", "torchvision", "timm", "albumentations", "numpy", "opencv-python-headless", "Pillow")
Sets = tuple[SegmentationDataset, SegmentationDataset]


@dataclass(frozen=True)
class Session:
    """The process that trains, and what it may do.

    Attributes:
        ranks: This process among the processes that train one model together.
        console: Prints the progress, in the first process.
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


def train_run(config: TrainConfig, open_sets: Callable[[int], Sets], session: Session, lock: RunLock) -> TrainResult:
    """Train one model, draw its report, and return the result.

    Several processes train one model together, and the first one writes.

    Args:
        config: The settings.
        open_sets: Takes the rule of folds, see `segkit.folds.Folds`, and returns the training and the validation
            images; not called if there is nothing to do.
        session: The process that trains.
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
            done, stale = start.checkpoint["epoch"], start.checkpoint["stale_epochs"]
            if done >= config.epochs:
                console.print(f"{run} is already finished, at {done}/{config.epochs} epochs")
            else:
                console.print(f"{run} was stopped early, after {counted(stale, 'epoch')} without a better mIoU")
            problem = ranks.on_first(partial(foreign_best, start.checkpoint, run))
            if problem and ranks.is_first:
                _log.warning("%s; nothing was changed", problem)
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
        check_names(config)
        rule = rule_of_folds(start.checkpoint)
        train_set, val_set = open_sets(rule)
        check_batch_memory(config, len(train_set), ranks)
        rarity = measure_rarity(config, train_set, console)
        train_batches, val_batches = build_loaders(config, train_set, val_set, rarity, ranks)
        loss = build_loss(config, rarity).to(device)
        scale = train_batches.dataset.training_scale
        model = build_model(config, train_set.class_names, device, ranks, console, scale=scale, is_resumed=is_resumed)
        model.category_ids = dict(train_set.category_ids)
        model.data_rules = data_rules(config, train_set)
        state = build_state(config, model, (train_set, val_set), len(train_batches), device, rule)
        if is_resumed:
            resume_run(state, start.checkpoint, start.folder, ranks, allow_data_change=config.allow_data_change)
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
            StopSignals(patient=ranks.count > 1) as stop,
            closing(train_batches),
            closing(val_batches),
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
        results = results_of(state)
        replaced = sorted(set(chain.from_iterable(ranks.gather(train_batches.dataset.replaced))))
        if replaced:
            listed = ", ".join(replaced[:20]) + (" ..." if len(replaced) > 20 else "")
            console.print(f"{counted(len(replaced), 'damaged training image')} replaced by others ({listed})")
        if ranks.is_first:
            confusion, gallery = score_best(run, val_set, device, precision, console, trainer.val_window)
            if results.best_row() is None:
                results = results._replace(iou=confusion.compute().iou.tolist())
            report.finish(results, confusion, gallery)
            tracking.show(report.pictures, state.epoch)
    console.print(scores_text(run, results, model.class_names, val_set.ignore_classes))
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


@dataclass(frozen=True)
class Start:
    """How a training begins: as a new run, or from a checkpoint.

    Attributes:
        folder: The run folder; None for the next free one below runs/.
        checkpoint: The content of the checkpoint that is resumed; None for a new run.
        may_have_begun: Whether the folder of a new run may hold the settings of a run that was stopped before it saved
            anything.
    """

    folder: Path | None
    checkpoint: Mapping[str, Any] | None = None
    may_have_begun: bool = False

    def is_finished(self, epochs: int, early_stopping: int) -> bool:
        """Return whether the checkpoint is of a finished run that neither more epochs nor more patience extend."""
        content = self.checkpoint
        if content is None or not content["finished"]:
            return False
        return has_ended(content["epoch"], content["stale_epochs"], epochs, early_stopping)

    def check_folder(self) -> None:
        """Raise UsageError if the run folder cannot be written to or is taken, before the data is read."""
        check_writable(self.folder)
        if self.checkpoint is None:
            check_free(self.folder, may_have_begun=self.may_have_begun, can_resume=True)

    def open_folder(self, lock: RunLock) -> RunFolder:
        """Return the run folder; for a new run, make it and lock it."""
        if self.checkpoint is not None:
            return RunFolder(self.folder)
        options = {"may_have_begun": self.may_have_begun, "can_resume": True}
        run = RunFolder(create_run_folder(self.folder, "train", lock, **options))
        if run.best.exists():
            aside = free_name(run.best)
            run.best.rename(aside)
            _log.warning("%s has no checkpoint to resume; it is renamed to %s", run.best, aside.name)
        return run


def find_start(config: TrainConfig, lock: RunLock) -> Start:
    """Return how a training begins by `resume` and `out`; lock and read the run that it resumes.

    Raises:
        UsageError: There is nothing to resume, or another process writes to the folder.
    """
    run = run_to_resume(config.resume, config.out)
    if run is None:
        return Start(config.out, may_have_begun=config.resume == "auto")
    lock.take(run.path)
    is_file = isinstance(config.resume, Path) and config.resume.is_file()
    return Start(run.path, read_run(run, config.resume if is_file else None))


def read_run(run: RunFolder, file: Path | None = None) -> dict[str, Any]:
    """Return the newest undamaged checkpoint of a run, or the checkpoint in `file`.

    A damaged last.pt is renamed: at the next save it would replace last.prev.pt, which is whole. Settings that segkit
    did not have yet when the checkpoint was written are added with their defaults.
    """
    content, refused = read_checkpoint(file or run.path)
    if file is not None and file.name != run.last.name and run.last.is_file():
        try:
            read_checkpoint(run.last)
        except SegkitError as error:
            refused = [str(error)]
    for sentence in refused:
        aside = free_name(run.damaged) if os.path.lexists(run.damaged) else run.damaged
        _log.warning("%s; it is renamed to %s, and the checkpoint before it is used", sentence, aside.name)
        run.last.rename(aside)
    content["settings"] = {**fixed_settings(TrainConfig()), **content["settings"]}
    return content


def load_run(
    state: TrainState, content: Mapping[str, Any], *, allow_data_change: bool, rank: int
) -> tuple[str | None, str]:
    """Bring `state` to what a checkpoint holds; return the number of epochs then and now, which may differ."""
    epochs = state.settings.pop("epochs")
    load_state(state, content, allow_data_change=allow_data_change, rank=rank)
    state.settings["epochs"] = epochs
    return content["settings"].get("epochs"), epochs


def resume_run(
    state: TrainState, content: Mapping[str, Any], out: Path, ranks: Ranks, *, allow_data_change: bool
) -> None:
    """Bring `state` to what a checkpoint holds; the first process warns of each difference to the run so far.

    Args:
        state: The state of a new run with the current settings and data.
        content: The checkpoint.
        out: The run folder.
        ranks: The processes.
        allow_data_change: Whether the data may differ from the data that the run began with.
    """
    changed = changed_data(content, state)
    epochs_before, epochs = load_run(state, content, allow_data_change=allow_data_change, rank=ranks.rank)
    warnings = [match_best(state, out, ranks, may_be_newer="val" not in changed)]
    if len(random_states(content)) != ranks.count:
        warnings.append(
            f"the run had {len(random_states(content))} processes and now has {ranks.count}: the samples of each batch "
            "stay the same, but random draws and batch statistics within each process change"
        )
    if changed:
        before, now = content["steps_per_epoch"], state.steps_per_epoch
        steps = f"; an epoch now has {now} steps instead of {before}" if now != before else ""
        best = "; the best mIoU is searched again, since it was measured on other images" if "val" in changed else ""
        warnings.append(f"the data has changed{steps}{best}")
    else:
        warnings.append(photographs_warning(content["data"], state.data, out))
    if epochs_before != epochs:
        warnings.append(
            f"`epochs` was {epochs_before}, is {epochs}: from here on the learning rate follows the new number, unlike "
            "in a run that had it from the start"
        )
    for warning in filter(None, warnings if ranks.is_first else ()):
        _log.warning(warning)


def position(state: TrainState) -> str:
    """Return how far a run is, as text."""
    return f"after epoch {state.epoch}" + (f" and {state.step} batches of the next" if state.step else "")


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
    """Add the run folder to an Interrupted from the block, for the message that says how to resume."""
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
    match_best(state, run.path, ranks)  # The checkpoint is older if the last one could not be written.
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
    window: SlidingWindow | None,
) -> tuple[ConfusionMatrix, Gallery]:
    """Return the confusion matrix of the best model of a run, and its predictions of some images.

    Args:
        run: The run folder.
        data: The validation images; few of them are in memory at a time.
        device: The device to run on.
        precision: Returns the autocast context that the run was validated in, so that the scores are the same.
        console: Shows the progress.
        window: The window of the validation now. The model file says in which one its own mIoU was measured; it is used
            unless memory runs out. A file of an older segkit does not say it.

    Raises:
        DataError: The model has other classes than the data, because somebody has replaced the file.
        MachineError: Memory has run out in windows, too.
    """
    # Use the memory format of the validation, so that the scores are the same to the last pixel.
    model = load_model(run.path).to(device, memory_format=torch.channels_last)
    check_model_classes(model.class_names, data, str(run.best))
    if "window" not in read_header(run.best):
        model.window = window

    def score() -> tuple[ConfusionMatrix, Gallery]:
        options = {"class_names": data.class_names, "exclude": data.ignored_labels}
        total = ConfusionMatrix(len(data.class_names), **options)
        gallery = Gallery(len(data), 2 * CELL)  # twice the size that is shown, for smooth outlines
        with precision():
            found = segment_dataset(data, Predictor(model, device=device, probs="none"))
            for index, one in enumerate(console.progress(found, total=len(data))):
                confusion = PerImageConfusion(len(data.class_names), **options)
                confusion.update(one.prediction.mask, one.target)
                total += confusion.total()
                gallery.offer(data.name(index), one.image, one.target, one.prediction.mask, confusion)
        return total, gallery

    try:
        return score()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Not in the handler, where the error keeps the tensors of the failed attempt.
    smaller = replace(window or AUTO_WINDOW, above=0)
    if smaller != model.window:
        _log.warning(
            "memory ran out while the best model was scored: its confusion matrix and pictures are of %s, but its mIoU "
            "was measured with %s",
            smaller,
            model.window or "whole images",
        )
    model.window = smaller
    with memory_errors_explained():
        return score()


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
    texts = {}  # each setting as a user would type it
    for setting in fields(config):
        value = getattr(config, setting.name)
        if isinstance(value, Segmenter):
            value = "a loaded model"
        if isinstance(value, Mapping):
            value = tuple(f"{key}={item}" for key, item in value.items())
        texts[setting.name] = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    changed = {name for name in texts if getattr(config, name) != default_of(config, name)}
    environment = write_environment(run.environment, device, command)
    imports = shlex.join(import_words(own_modules(config)))
    folder = f"{shlex.quote(str(run))} {imports}".rstrip()
    patience = f" --early-stopping {2 * config.early_stopping}" if config.early_stopping else ""
    data = "--data test.json --images photographs/"
    scored = config.val or (config.data if have_split(config, "val") else ())
    if scored and not has_masks(config) and len(config.images) <= 1:
        roots = ["--images", str(config.images[0])] if config.images else []
        data = shlex.join(["--data", *map(str, scored), *roots])
    facts = RunFacts(
        class_names=state.model.class_names,
        model=f"{config.model} on {config.backbone}",
        parameters=count_parameters(state.model),
        images=(len(train_batches.dataset), len(val_set)),
        epochs=config.epochs,
        settings=texts,
        changed=changed - {"out", "resume"},
        commands={
            "Segment photographs": f"python infer.py --weights {folder} --source photographs/",
            "Score on labelled images": f"python -m segkit evaluate --weights {folder} {data}",
            "Train for more epochs": f"python train.py --resume {folder} --epochs {2 * config.epochs}{patience}",
        },
        environment={name: str(value) for name, value in environment.items()},
    )
    report = RunReport(run, facts)
    first = next(iter(train_batches.batch_sampler))[:8]
    images, target = zip(*(train_batches.dataset[sample] for sample in first), strict=True)
    report.draw_batch([image.permute(1, 2, 0).numpy() for image in images], [labels.numpy() for labels in target])
    return report


def write_environment(file: Path, device: torch.device, command: str = "") -> dict[str, Any]:
    """Write env.json and return its content; a resumed run keeps the earlier content under `earlier`.

    It has versions, device and time, but never environment variables, which may hold secrets.

    Args:
        file: The JSON file.
        device: The device of the model.
        command: The command line; empty if a program calls segkit, because its arguments may hold secrets.
    """
    is_cuda = device.type == "cuda"
    now = {
        "started": _now().isoformat(timespec="seconds"),
        **({"command": command} if command else {}),
        "segkit": __version__,
        "python": platform.python_version(),
        **{name: _version_of(name) for name in PACKAGES},
        "device": f"{device}, {torch.cuda.get_device_name(device)}" if is_cuda else f"{device}",
        "cores": count_cores(),
        "platform": platform.platform(),
    }
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the file does not exist, or somebody has changed it
        earlier = {}
    is_kept = isinstance(earlier, dict) and earlier
    content = {**now, "earlier": [*earlier.pop("earlier", []), earlier]} if is_kept else now
    write_whole(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return now


def _now() -> datetime:
    """Return the time in the local time zone, or in UTC if the variable TZ is not a time zone."""
    try:
        return datetime.now().astimezone()
    except ValueError:  # an offset of more than a day
        return datetime.now(timezone.utc)


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # for example another build of OpenCV
        return "not found"


def _who_works(config: TrainConfig, device: torch.device, ranks: Ranks) -> str:
    """Return how many threads compute and how many processes load images, in each process that trains."""
    workers = pick_workers(config.workers, ranks.count_here)
    loading = f"{counted(workers, 'process')} to load images" if workers else "images are loaded in between"
    computing = f"{counted(torch.get_num_threads(), 'thread')} to compute, " if device.type == "cpu" else ""
    return f"{computing}{loading}" + (" (for each process of torchrun)" if ranks.count > 1 else "")


def plan_text(
    config: TrainConfig,
    run: RunFolder,
    model: Segmenter,
    train_set: SegmentationDataset,
    val_set: SegmentationDataset,
    device: torch.device,
    ranks: Ranks,
) -> str:
    """Return the plan of the training in a few lines: folder, data, masks, model, loss."""
    names = list(model.class_names)
    lines = [
        f"run    {run}",
        f"data   {len(train_set)} training and {counted(len(val_set), 'validation image')}, {len(names)} classes: "
        f"{', '.join(names)}",
    ]
    categories = next((part.categories for part in sources_of(train_set) if hasattr(part, "categories")), {})
    # A category that is not among the class names is background in another spelling.
    labels = {category: names.index(name) if name in names else 0 for category, name in categories.items()}
    if any(category != label for category, label in labels.items()):
        listed = (f"{label} {names[label]} (category {category})" for category, label in labels.items())
        implied = [] if 0 in labels.values() else [f"0 {names[0]}"]
        lines.append(f"labels {', '.join([*implied, *listed])}")
    masks = "from the data set"
    if config.data:
        overlap = next((part.overlap for part in sources_of(train_set) if hasattr(part, "overlap")), None)
        masks = "from their files" if overlap is None else f"where objects overlap, {OVERLAP_TEXTS[overlap]}"
        if config.ignore_classes:
            masks += f"; neither learnt nor scored: {', '.join(config.ignore_classes)}"
    loss = " + ".join(f"{weight:g} {name}" for name, weight in config.loss.items())
    if config.loss_option:
        loss += f" ({', '.join(f'{name}={value}' for name, value in config.loss_option.items())})"
    lines += [
        f"masks  {masks}",
        f"model  {config.model} on {config.backbone}, {count_parameters(model) / 1e6:.1f} M parameters, on {device}",
        f"loss   {loss}, {counted(config.epochs, 'epoch')}, batches of {counted(config.batch_size, 'crop')} of "
        f"{config.crop} pixels",
        f"cores  {count_cores()}: {_who_works(config, device, ranks)}",
    ]
    if not model.training_scale.is_full_size:
        scale = model.training_scale
        lines.append(f"scale  photographs are resized as in training to validate: {scale} (not with full_size)")
    if len(train_set) < config.batch_size:
        few = len(train_set)
        lines.append(f"note   there are fewer images than a batch holds: each step takes all {few} of them")
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if ranks.count > 1:
        share = config.batch_size // ranks.count
        lines.append(f"ranks  {ranks.count} processes, each with {share} of a batch's {config.batch_size} crops")
    elif gpus > 1:
        lines.append(f"ranks  1 of {gpus} GPUs; to use all, start it by torchrun --standalone --nproc-per-node {gpus}")
    return "\n".join(lines)


def count_parameters(model: Segmenter) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def epoch_line(epoch: EpochReport, state: TrainState, epochs: int) -> str:
    """Return the results of an epoch in one line, with its time and an estimate of the remaining time."""
    row = epoch.row
    parts = [f"{state.epoch:4d}/{epochs}", f"loss {row['train_loss']:.4f}"]
    if epoch.scores is not None:
        average = f" ema {row['ema_miou']:.4f}" if "ema_miou" in row else ""
        best = f"(best {state.best_miou:.4f} @{state.best_epoch})"
        parts += [f"val {row['val_loss']:.4f}", f"mIoU {row['miou']:.4f}{average} {best}"]
    parts += [f"lr {row['lr']:.1e}", f"{epoch.images_per_second:.1f} img/s", _clock(row["time"])]
    return "  ".join([*parts, f"eta {_clock((epochs - state.epoch) * row['time'])}"])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def scores_text(run: RunFolder, results: RunResults, class_names: Sequence[str], ignored: Sequence[str]) -> str:
    """Return the IoU of each class at the best epoch, and where the files are."""
    averaged = " (averaged weights)" if results.best_weights == "ema" else ""
    rows = [
        [name, "-" if name in ignored else percent(iou)]
        for name, iou in zip(class_names, results.best_iou(class_names), strict=True)
    ]
    lines = table(["class", "IoU %"], [*rows, ["mIoU", percent(results.best_miou)]])
    return "\n".join(
        [
            f"\nvalidation images, best epoch {results.best_epoch}{averaged}:",
            *lines,
            f"\n{run}: best.safetensors, last.pt, results.csv, report.html, pictures and tables",
        ]
    )
