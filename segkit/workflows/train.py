"""train: data and settings in, a run folder with a model out."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segkit.config import (
    TrainConfig,
    as_declared,
    from_keywords,
    implied_settings,
    read_recipe,
    read_settings,
    takes_settings,
)
from segkit.console import Console
from segkit.data import SegmentationDataset
from segkit.demo import write_demo
from segkit.errors import MissingFileError, UsageError
from segkit.files import with_home
from segkit.models import import_modules
from segkit.runs import DEMO, RunLock, run_to_resume
from segkit.training import ranks_of_torchrun, save_signal_ignored
from segkit.workflows.crossval import CrossValidationResult, cross_validate
from segkit.workflows.datasets import load_data
from segkit.workflows.parts import architecture_of
from segkit.workflows.run import Session, TrainResult, train_run

OWN = ("data", "val", "train_only")  # the settings that take a data set of the caller


@takes_settings(TrainConfig)
def train(*, verbose: bool = False, **settings: Any) -> TrainResult | CrossValidationResult:
    """Train a segmentation model, as `python train.py` does.

        run = segkit.train(data="train.json", images="photographs/", model="fpn", epochs=40, out="runs/x")
        model = run.load()

    While it trains, Ctrl-C and SIGTERM let the current step finish and save the state; `resume` continues there.
    Under torchrun all processes train one model, and the first one writes. The C library of the process is left as it
    is: call `segkit.training.keep_memory()` before, and steps on a CPU take a quarter less time.

    Args:
        verbose: Print what is trained, and the scores after each epoch.
        **settings: The settings of the command, see `python train.py --help`. A setting that is not given is taken
            from the run to resume, or from the recipe. `data`, `val` and `train_only` also take a data set of your
            own, see `segkit.data.SegmentationDataset`; `init_from` also takes a loaded model, and `recipe` a YAML file
            with settings. Without `val`, a share of `data` is split off; without `data`, a demo set is drawn.

    Returns:
        The run folder, its best scores, and the model by `load()`. With `fold="all"`, the results of all folds.

    Raises:
        UsageError: A setting or the run folder cannot be used.
        DataError: The data cannot be used.
        NotFiniteError: The loss or the gradient is not finite in several steps.
        segkit.training.Interrupted: Ctrl-C or SIGTERM has come; the state is saved.
    """
    settings = as_declared(TrainConfig, settings)
    import_modules(settings.get("imports", ()))
    if settings.get("data") == ():
        raise UsageError("`data` is empty; give files or a data set, or omit it to train on the demo")
    own = {}
    for name in OWN:
        for value in settings.get(name, ()):
            if not isinstance(value, Path | SegmentationDataset):
                raise UsageError(f"`{name}` takes paths or a SegmentationDataset, got a {type(value).__name__}")
        if len(settings.get(name, ())) == 1 and isinstance(settings[name][0], SegmentationDataset):
            (own[name],) = settings.pop(name)
    # Keywords come before the recipe, and the recipe comes before the run or the model that the training starts from.
    implied = implied_settings({**settings, "data": bool(own) or settings.get("data")}, architecture_of)
    recipe = settings.get("recipe")
    if recipe is not None and recipe.endswith((".yaml", ".yml")):
        found = read_settings(TrainConfig, Path(with_home(settings.pop("recipe"))))
        # `out` and `resume` are of the run that the file belongs to.
        chosen = {name: setting for name, setting in found.items() if name not in ("out", "resume")}
    else:
        chosen = {} if recipe is None else read_recipe(TrainConfig, recipe, "`recipe`")
    if own:  # the data of the file, such as a run's args.yaml, is replaced as a whole
        chosen = {name: setting for name, setting in chosen.items() if name not in (*OWN, "images", "masks")}
    below = {name: setting.value for name, setting in {**implied, **chosen}.items()}
    every = {**below, **settings}
    # TrainConfig does not have the data sets in `own`, and would require `data`.
    if own and ("data" not in own or any(every.get(name) for name in OWN)):
        raise UsageError("give `data`, `val` and `train_only` all as files, or all as data sets")
    if own and every.get("folds") is not None:
        raise UsageError("`folds` divides files; divide your own data set with `subset`, and give `data` and `val`")
    config = from_keywords(TrainConfig, every)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        return train_as_configured(config, own, verbose=verbose)
    finally:  # The program keeps its own random states; the run has seeded them.
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def train_as_configured(
    config: TrainConfig,
    own: Mapping[str, SegmentationDataset] | None = None,
    *,
    verbose: bool = False,
    command: str = "",
    may_keep_memory: bool = False,
) -> TrainResult | CrossValidationResult:
    """Train as `train` does, with settings that are read already.

    Args:
        config: The settings.
        own: Data sets of the caller, as `data`, `val` and `train_only`.
        verbose: Print what is trained, and the scores after each epoch.
        command: The command line that env.json records.
        may_keep_memory: Whether the process is ours, so that `segkit.training.keep_memory` may set it up.
    """
    import_modules(config.imports)
    own = own or {}
    with save_signal_ignored(), ranks_of_torchrun(config.device) as ranks, RunLock() as lock:
        config = ranks.on_first(lambda config=config: config)  # Others may have read args.yaml a moment later.
        session = Session(ranks, Console(verbose=verbose and ranks.is_first), command, may_keep_memory)
        if config.fold == "all":
            if ranks.count > 1:
                raise UsageError('`fold="all"` trains in one process; under torchrun, train each `fold` by its number')
            return cross_validate(config, session, lock)
        if own or config.data:
            sources = replace(config, **{name: (data,) for name, data in own.items()})
            return train_run(config, lambda rule: load_data(sources, session.console, fold_rule=rule), session, lock)
        resumed = ranks.on_first(lambda: run_to_resume(config.resume, config.out))
        if resumed is not None:
            if not resumed.has_checkpoint:
                raise MissingFileError(f"nothing to resume: there is no {resumed.last}")
            if not resumed.args.is_file():
                raise MissingFileError(
                    f"{resumed} has no {resumed.args.name}, so its data and settings are not known; name them all again"
                )
            raise UsageError(
                f"{resumed} was trained on the data sets of a program, not on files; resume it by `segkit.train` with "
                "`data` and `val`, or name its files"
            )
        session.console.print(f"DEMO: no data is given, so segkit draws a small data set in {DEMO} and trains on it.")
        train_json, val_json = ranks.on_first(lambda: write_demo(DEMO))
        config = replace(config, data=(train_json,), val=(val_json,))
        result = train_run(config, lambda _: load_data(config, session.console), session, lock)
        return replace(result, is_demo=True)
