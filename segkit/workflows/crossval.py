"""cross_validate: a training for each fold, one after another, and the scores of all models together."""

import copy
import csv
import gc
import hashlib
import io
import json
import logging
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segkit.config import TrainConfig, write_yaml
from segkit.console import Console, counted, percent
from segkit.errors import MissingFileError, UsageError
from segkit.files import read_text, remove_leftovers, write_records, write_whole
from segkit.folds.split import Folds
from segkit.metrics import ConfusionMatrix
from segkit.metrics.scores import share_table
from segkit.models import read_header
from segkit.report.run import write_confusion
from segkit.runs import RunFolder, RunLock, check_free, check_writable, create_run_folder, run_to_resume
from segkit.training import Interrupted, autocast, release_memory
from segkit.training.checkpoint import check_settings, photographs_warning
from segkit.training.validation import validation_window
from segkit.workflows.datasets import data_digests, open_folds, photograph_digests, rule_of_folds
from segkit.workflows.parts import fixed_settings
from segkit.workflows.predictors import pick_device
from segkit.workflows.run import Session, Start, TrainResult, finished_result, read_run, score_best, train_run

_log = logging.getLogger(__name__)
Row = dict[str, Any]


@dataclass(frozen=True)
class CrossValidationResult:
    """The finished trainings of all folds.

    Attributes:
        folder: The folder that holds the runs fold0, fold1 and so on.
        folds: The result of each fold.
        summary: The rows of summary.csv: best epoch, mIoU and IoU per class of each fold, their mean and their standard
            deviation.
        was_finished: Whether everything was finished before, so that nothing was trained.
    """

    folder: RunFolder
    folds: tuple[TrainResult, ...]
    summary: tuple[Mapping[str, str], ...]
    was_finished: bool = False

    @property
    def command(self) -> str:
        """The infer command that uses the models of all folds together."""
        return ensemble_command(self.folder)


def cross_validate(config: TrainConfig, session: Session, lock: RunLock) -> CrossValidationResult:
    """Train the model of each fold as an ordinary run, and score each image by the model that has not seen it.

    The data is opened once. All folds have the same seed, so that each equals the run of `fold=I` by itself. If the run
    is resumed, finished folds stay as they are.

    Args:
        config: The settings.
        session: The process that trains.
        lock: Locks the folder of all folds.

    Raises:
        Interrupted: Ctrl-C or SIGTERM has come. The state is saved; the attribute `run` is the folder of all folds.
        UsageError: A setting, the data or the folder cannot be used.
    """
    console = session.console
    run = run_to_resume(config.resume, config.out)
    if run is not None:
        lock.take(run.path)
        finished, data_before = _finished_folds(config, run)
        if len(finished) == config.folds and _has_summary(run):
            console.print(f"{run} is already finished, all {config.folds} folds of {counted(config.epochs, 'epoch')}")
            return CrossValidationResult(run, tuple(finished), _read_summary(run), was_finished=True)
    check_writable(config.out if run is None else run.path)
    folds = open_folds(config, console)
    if run is None:
        run = RunFolder(create_run_folder(config.out, "train", lock, can_resume=True))
        remove_leftovers(run.path, run.splits.name)
        splits = [{"fold": fold, "val": names} for fold, names in enumerate(folds.validated())]
        write_whole(run.splits, json.dumps(splits, indent=1), durable=True)
    else:
        divided = run.validated()
        for rule in (2, 1):
            if divided != folds.validated():
                folds = folds.by_rule(rule)
        if divided != folds.validated():
            raise UsageError(
                f"cannot resume: the images are no longer divided as in {run.splits}, so that models would be scored "
                "on images they were trained on; start a new run with another `out`"
            )
        _warn_of_photographs(data_before, folds, run)
        for file in (run.summary, run.out_of_fold_confusion, run.infer_command):  # They are about the models so far.
            file.unlink(missing_ok=True)
    write_yaml(replace(config, resume=False), run.args)
    sizes = [len(names) for names in folds.validated()]
    console.print(
        f"folds  {config.folds} trainings of {counted(config.epochs, 'epoch')}, one after another, in {run.fold(0)} to "
        f"{run.fold(config.folds - 1)}\n"
        f"       {sum(sizes)} images, each validates once: {', '.join(map(str, sizes))}"
    )
    results = []
    try:
        for number in range(config.folds):
            console.print(f"\nfold {number}, of 0 to {config.folds - 1}")
            fold = run.fold(number)
            settings = replace(config, fold=number, out=fold.path, resume="auto")  # resumes the fold if it was saved
            with RunLock() as fold_lock:
                results.append(train_run(settings, lambda _, number=number: folds[number], session, fold_lock))
            gc.collect()  # The model is part of reference cycles, and the next one needs its memory.
            release_memory()  # Each loader worker would copy it.
        _sum_up(config, folds, run, console)
    except Interrupted as stop:
        stop.run = run.path  # the folder of all folds, instead of the fold that was stopped
        raise
    except KeyboardInterrupt:  # outside a training
        _log.info("to resume this run: `resume=%s`", run)
        raise
    return CrossValidationResult(run, tuple(results), _read_summary(run))


def _finished_folds(config: TrainConfig, run: RunFolder) -> tuple[list[TrainResult], dict[int, Mapping[str, str]]]:
    """Check the folds of the run to resume.

    Returns:
        The results of the finished folds, and by the number of each such fold the digests of its data.

    Raises:
        MissingFileError: The folder is not one of a cross-validation.
        UsageError: A fold has been trained with other settings or on other data, or has lost its checkpoint.
    """
    if not run.is_cross_validation:
        raise MissingFileError(f"nothing to resume: {run} is not a run of all folds, it has no {run.splits.name}")
    finished, data, now = [], {}, fixed_settings(config)
    for number in range(config.folds):
        fold = run.fold(number)
        if not fold.has_checkpoint:
            check_free(fold.path, may_have_begun=True)  # before anything is removed
            continue
        content = read_run(fold)
        check_settings({**content["settings"], "fold": now["fold"], "epochs": now["epochs"]}, now)
        digests = data_digests(config, fold_rule=rule_of_folds(content))
        is_changed = any(content["data"].get(part, digest) != digest for part, digest in digests.items())
        if is_changed and not config.allow_data_change:
            raise UsageError(
                f"cannot resume: the data is not what fold {number} was trained on (its files differ); "
                "to resume it on the current data, add `allow_data_change`"
            )
        if Start(fold.path, content).is_finished(config.epochs, config.early_stopping):
            finished.append(finished_result(fold, content))
            data[number] = content["data"]
    return finished, data


def _warn_of_photographs(data_before: Mapping[int, Mapping[str, str]], folds: Folds, run: RunFolder) -> None:
    """Warn once if photographs have changed since a fold was finished; a fold that is continued warns itself."""
    for number, before in data_before.items():
        warning = photographs_warning(before, photograph_digests(folds[number]), run.fold(number).path)
        if warning is not None:
            _log.warning(warning)
            break  # all folds have the same photographs


def _sum_up(config: TrainConfig, folds: Folds, run: RunFolder, console: Console) -> None:
    """Score every image by the model that has not seen it; print and write the scores.

    summary.csv is written last: it says that the cross-validation is finished, and by which models.
    """
    device = pick_device(config.device)
    runs = [run.fold(number) for number in range(config.folds)]
    data = [folds[number][1] for number in range(config.folds)]
    of_fold = [
        score_best(fold, own, device, autocast(device, config.amp), console, validation_window(config.val_window))[0]
        for fold, own in zip(runs, data, strict=True)
    ]
    total = copy.deepcopy(of_fold[0])
    for confusion in of_fold[1:]:
        total += confusion
    values = np.stack([_values(confusion) for confusion in of_fold])
    # If somebody has replaced the file of a model, its epoch may be missing.
    epochs = [(read_header(fold.best).get("extra") or {}).get("epoch", "") for fold in runs]
    rows = summary_rows(total.class_names, epochs, list(map(_identity, runs)), values)
    write_confusion(run.out_of_fold_confusion, total)
    write_whole(run.infer_command, f"{ensemble_command(run)}\n")
    write_records(run.summary, rows)
    written = (run.summary, run.out_of_fold_confusion, run.splits, run.infer_command)
    console.print(
        f"\nout of fold: {sum(map(len, data))} images in one confusion matrix, each by the model that has not seen it\n"
        f"{summary_table(total, values)}\n\n"
        f"{run}: {', '.join(file.name for file in written)}"
    )


def ensemble_command(run: RunFolder) -> str:
    """Return the shell command that segments photographs with the models of all folds."""
    return f"python infer.py --weights {shlex.quote(str(run))}/fold* --source photographs/"


def _has_summary(run: RunFolder) -> bool:
    """Return whether summary.csv exists and is about the models that the folds have now."""
    if not run.summary.is_file():
        return False
    models = {row.get("fold"): row.get("model") for row in _read_summary(run)}
    return all(models.get(str(i)) == _identity(fold) for i, fold in enumerate(run.folds()))


def _read_summary(run: RunFolder) -> tuple[Mapping[str, str], ...]:
    return tuple(csv.DictReader(io.StringIO(read_text(run.summary))))


def _identity(run: RunFolder) -> str:
    """Return a digest of the best model of a run."""
    return hashlib.sha256(run.best.read_bytes()).hexdigest()[:16]


def summary_rows(
    class_names: Sequence[str], best_epochs: Sequence[int | str], models: Sequence[str], values: np.ndarray
) -> list[Row]:
    """Return a row for each fold, one for their mean and one for their standard deviation.

    Args:
        class_names: C names.
        best_epochs: The best epoch of each fold; empty if its model file lacks it.
        models: The digest of each fold's model.
        values: (k, C + 1) mIoU and the IoU of each class; NaN for a class that a fold does not have.
    """
    names = ["miou", *(f"iou/{name}" for name in class_names)]
    rows = [*zip(range(len(values)), best_epochs, models, values, strict=True)]
    rows += [("mean", "", "", mean_of_folds(values)), ("sd", "", "", spread_of_folds(values))]
    return [
        {"fold": fold, "best_epoch": epoch}
        | {name: "" if math.isnan(value) else f"{value:.6g}" for name, value in zip(names, of_fold, strict=True)}
        | {"model": model}
        for fold, epoch, model, of_fold in rows
    ]


def mean_of_folds(values: np.ndarray) -> np.ndarray:
    """Return the (D,) means of (k, D) values over the folds that have one; NaN if no fold has."""
    return _over_folds(values, 1, np.mean)


def spread_of_folds(values: np.ndarray) -> np.ndarray:
    """Return the (D,) sample standard deviations of (k, D) values; NaN if fewer than two folds have a value."""
    return _over_folds(values, 2, lambda column: np.std(column, ddof=1))


def summary_table(total: ConfusionMatrix, values: np.ndarray) -> str:
    """Return a table of the IoU of each class over all images, and of the mean and spread of the folds' IoU.

    Args:
        total: The confusion matrix of all images.
        values: (k, C + 1) mIoU and the IoU of each class in each fold.
    """
    of_folds = zip(mean_of_folds(values), spread_of_folds(values), strict=True)
    rows = [
        (name, value, f"  {percent(mean):>13}  {percent(spread):>7}")
        for name, value, (mean, spread) in zip(
            ("mean (mIoU)", *total.class_names), _values(total), of_folds, strict=True
        )
    ]
    return share_table("class", ("  IoU %", "mean of folds", "     sd"), [*rows[1:], rows[0]])


def _values(confusion: ConfusionMatrix) -> np.ndarray:
    """Return (C + 1,) mIoU and the IoU of each class; NaN for classes that are not scored."""
    scores = confusion.compute()
    return np.array([scores.miou, *np.where(confusion.included, scores.iou, np.nan)])


def _over_folds(values: np.ndarray, least: int, function: Callable[[np.ndarray], float]) -> np.ndarray:
    columns = [column[~np.isnan(column)] for column in values.T]
    return np.array([function(column) if len(column) >= least else np.nan for column in columns])
