"""--fold all: a training for each fold, one after another, and what they are worth together."""

import gc
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.cli.train_resume import data_digests, fixed_settings, is_done, is_resumed, read_run
from segkit.config import TrainConfig, write_yaml
from segkit.errors import MissingFileError, UsageError
from segkit.runs import RunLock

if TYPE_CHECKING:
    from segkit.folds.split import Folds


def open_folds(config: TrainConfig) -> "Folds":
    """Return the images, divided into folds."""
    from segkit.workflows.datasets import open_folds

    return open_folds(config)


def train_all_folds(config: TrainConfig, train: Callable[..., Path]) -> Path:
    """Trains the model of each fold as an ordinary run, and scores each image by the one that has not seen it.

    The data is opened once. Every fold has the same seed, so that it equals the run that --fold I makes alone.

    Args:
        config: The settings; where --resume is among them, folds that are finished stay as they are.
        train: Trains one of them, see `segkit.cli.train.train`.

    Returns:
        The folder that holds the runs fold0, fold1 ...
    """
    with RunLock() as lock:
        return _train_all_folds(config, train, lock)


def _train_all_folds(config: TrainConfig, train: Callable[..., Path], lock: RunLock) -> Path:
    from segkit.cli.fold_summary import is_summed_up, sum_up
    from segkit.runs import check_writable

    if is_resumed(config):
        lock.take(config.out)
    done = _finished_folds(config) if is_resumed(config) else set()
    if len(done) == config.folds and is_summed_up(config.out, config.folds):
        _tell_finished(config)
        return config.out
    check_writable(config.out)
    folds = open_folds(config)
    out = _open_whole(config, folds)
    if not is_resumed(config):
        lock.take(out)
    print(_plan(config, folds, out))
    with _told_when_stopped(out):
        for fold in range(config.folds):
            if fold in done:
                print(f"\nfold {fold} is finished")
                continue
            print(f"\nfold {fold}, of 0 to {config.folds - 1}", flush=True)
            settings = _of_fold(config, out, fold)
            if not settings.resume:
                shutil.rmtree(settings.out, ignore_errors=True)  # it was stopped before it was saved
            train(settings, load=lambda config: folds[config.fold], whole=out)
            gc.collect()  # the model is part of cycles, and the next one needs its room
        sum_up(config, folds, out)
    return out


def _of_fold(config: TrainConfig, out: Path, fold: int) -> TrainConfig:
    """The settings of one fold, which goes on where it has been saved."""
    folder = out / f"fold{fold}"
    return replace(config, fold=fold, out=folder, resume=folder if _is_saved(folder) else False)


def _is_saved(folder: Path) -> bool:
    from segkit.training.checkpoint import LAST, PREVIOUS

    return any((folder / name).is_file() for name in (LAST, PREVIOUS))


def _finished_folds(config: TrainConfig) -> set[int]:
    """The folds of the run to resume that are finished.

    Raises:
        FileNotFoundError: the folder is none of --fold all.
        ValueError: a fold has been trained with other settings, or on other data.
    """
    from segkit.models.model_file import SPLITS
    from segkit.training.checkpoint import check_settings

    if not (config.out / SPLITS).is_file():
        raise MissingFileError(f"nothing to resume: {config.out} is no run of --fold all, it has no {SPLITS}")
    done, digest = set(), data_digests(config)
    for fold in (i for i in range(config.folds) if _is_saved(config.out / f"fold{i}")):
        settings = _of_fold(config, config.out, fold)
        content = read_run(settings)
        now = fixed_settings(settings)
        check_settings({**content["settings"], "epochs": now["epochs"]}, now)
        if content["data"] != digest and not config.allow_data_change:
            raise UsageError(
                f"cannot resume: the data is not what fold {fold} was trained on (its files differ); "
                "to go on with it nonetheless add --allow-data-change"
            )
        if is_done(settings, content):
            done.add(fold)
    return done


def _open_whole(config: TrainConfig, folds: "Folds") -> Path:
    """Makes the folder of all folds, or takes up the one to resume, whose images must be divided as before."""
    from segkit.cli.fold_summary import remove_summary
    from segkit.files import remove_leftovers, write_whole
    from segkit.models.model_file import SPLITS
    from segkit.runs import create_run_folder

    splits = [{"fold": fold, "val": names} for fold, names in enumerate(folds.validated())]
    if is_resumed(config):
        out = config.out
        if [entry["val"] for entry in json.loads((out / SPLITS).read_text(encoding="utf-8"))] != folds.validated():
            raise UsageError(
                f"cannot resume: the images are no longer divided as {out / SPLITS} says, so that models would be "
                "scored on what they have seen; begin a new run with another --out"
            )
        remove_summary(out)
    else:
        out = create_run_folder(config.out, "train")
        remove_leftovers(out, SPLITS)
        write_whole(out / SPLITS, json.dumps(splits, indent=1), durable=True)
    write_yaml(replace(config, resume=False), out / "args.yaml")
    return out


def _plan(config: TrainConfig, folds: "Folds", out: Path) -> str:
    sizes = [len(names) for names in folds.validated()]
    return (
        f"folds  {config.folds} trainings of {config.epochs} epochs, one after another, in {out / 'fold0'} to "
        f"{out / f'fold{config.folds - 1}'}\n"
        f"       {sum(sizes)} images, each validates once: {', '.join(map(str, sizes))}"
    )


def _tell_finished(config: TrainConfig) -> None:
    more = f" --early-stopping {2 * config.early_stopping}" if config.early_stopping else ""
    print(
        f"{config.out} is already finished, all {config.folds} folds of {config.epochs} epochs; "
        f"to go on: --epochs {2 * config.epochs}{more}"
    )


@contextmanager
def _told_when_stopped(out: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nTo go on: python train.py --resume {out}", file=sys.stderr)
        raise
