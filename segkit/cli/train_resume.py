"""--resume: which run goes on, with which settings, and whether its data is still the same."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.config import Setting, TrainConfig, read_settings

if TYPE_CHECKING:
    from segkit.data import SegmentationDataset
    from segkit.training import Ranks, TrainState

# What a resumed run may do in another way; the data is compared by its content.
FREE = {
    *("data", "val", "train_only", "images", "masks", "class_names", "palette", "mask_cache", "allow_outside_root"),
    *("epochs", "early_stopping", "save_every", "log", "pretrained", "init_from", "nan_policy"),
    *("out", "resume", "allow_data_change", "device", "workers", "compile", "recipe", "sync_bn"),
}
DAMAGED = "last.damaged.pt"
DRAWN_LAST = "val_predictions.png"  # of what a finished run has; one that goes on has it no more


def goes_on(config: TrainConfig) -> bool:
    """Whether there is a run to go on with; for `auto`, whether --out holds one."""
    if config.resume != "auto":
        return config.resume is not False
    from segkit.models.model_file import SPLITS
    from segkit.training.checkpoint import LAST, PREVIOUS

    return config.out is not None and any((config.out / name).is_file() for name in (LAST, PREVIOUS, SPLITS))


def settings_of_run(config: TrainConfig) -> dict[str, Setting]:
    """The settings of the run that --resume names, but for where it is."""
    if config.resume is True and config.out is None:
        return {}
    file = run_folder(config) / "args.yaml"
    found = read_settings(TrainConfig, file) if file.is_file() else {}
    return {name: setting for name, setting in found.items() if name not in ("out", "resume")}


def settle(config: TrainConfig) -> TrainConfig:
    """The settings with the folder of the run to go on with; `auto` becomes True where there is one."""
    if not goes_on(config):
        return config
    resume = True if config.resume == "auto" else config.resume
    return dataclasses.replace(config, out=run_folder(config), resume=resume)


def is_resumed(config: TrainConfig) -> bool:
    """Whether a run goes on, by settled settings: all processes agree, whatever they see of the folder."""
    return config.resume not in (False, "auto")


def run_folder(config: TrainConfig) -> Path:
    """The folder of the run to resume."""
    if config.resume in (True, "auto"):
        return config.out
    path = Path(config.resume)
    return path.parent if path.is_file() else path


def read_run(config: TrainConfig) -> dict[str, Any]:
    """The newest whole checkpoint of the run to resume, or the file that --resume names.

    Says what was damaged, and puts it aside: at the next save it would replace the whole one. Settings that segkit did
    not have yet when it was written have their defaults in it.
    """
    from segkit.training import read_checkpoint
    from segkit.training.checkpoint import LAST

    path = config.out if config.resume is True else Path(config.resume)
    content, refused = read_checkpoint(path)
    if path.is_file() and path.name != LAST:
        refused = _refused(config.out / LAST)
    for sentence in refused:
        print(f"{sentence}; going on from the checkpoint before it")
        (config.out / LAST).replace(config.out / DAMAGED)
    content["settings"] = {**fixed_settings(TrainConfig()), **content["settings"]}
    return content


def _refused(file: Path) -> list[str]:
    """What is wrong with a checkpoint, if there is one."""
    from segkit.training import read_checkpoint

    try:
        if file.is_file():
            read_checkpoint(file)
    except ValueError as error:
        return [str(error)]
    return []


def is_done(config: TrainConfig, content: dict[str, Any]) -> bool:
    """Whether nothing is left to do."""
    done = _has_stopped(config, content) or content["epoch"] >= config.epochs
    return done and (config.out / DRAWN_LAST).is_file()


def is_finished(config: TrainConfig, content: dict[str, Any]) -> bool:
    """Whether nothing is left to do; says so."""
    if not is_done(config, content):
        return False
    epoch, stale = content["epoch"], content["stale_epochs"]
    options = [f"--early-stopping {2 * stale}"] if _has_stopped(config, content) else []
    if epoch < config.epochs:
        what = f"stopped early, after {stale} epochs without a better mIoU"
    else:
        what = f"is already finished, at {epoch}/{config.epochs} epochs"
        options.insert(0, f"--epochs {2 * epoch}")
    print(f"{config.out} {what}; to go on: {' '.join(options)}")
    return True


def _has_stopped(config: TrainConfig, content: dict[str, Any]) -> bool:
    return 0 < config.early_stopping <= content["stale_epochs"]


def resume(config: TrainConfig, state: "TrainState", content: dict[str, Any], ranks: "Ranks") -> None:
    """Puts `state` where the run stood, and says where that is."""
    from segkit.training.checkpoint import changed_data, random_states

    changed = changed_data(content, state)
    before, after = load_run(config, state, content, ranks)
    print(f"resuming {config.out} {place(state)}")
    processes = len(random_states(content))
    if processes != ranks.count:
        print(
            f"warning: the run had {processes} processes, and goes on with {ranks.count}: the samples of each batch "
            "stay the same, what each process draws and the statistics of its batch norms do not"
        )
    if changed:
        steps = state.steps_per_epoch, content["steps_per_epoch"]
        anew = f"; an epoch has {steps[0]} steps in the place of {steps[1]}" if steps[0] != steps[1] else ""
        best = "; what was best on other images counts no more" if "val" in changed else ""
        print(f"warning: the data has changed{anew}{best}")
    if before != after:
        print(
            f"--epochs was {before}, is {after}: the learning rate follows the new number from here on, "
            "which a run of that length would not have done from the start"
        )


def load_run(
    config: TrainConfig, state: "TrainState", content: dict[str, Any], ranks: "Ranks"
) -> tuple[str | None, str]:
    """Puts `state` where the run stood; gives the number of epochs that it had and has, which alone may change."""
    from segkit.training import load_state

    epochs = state.settings.pop("epochs")
    load_state(state, content, allow_data_change=config.allow_data_change, rank=ranks.rank)
    state.settings["epochs"] = epochs
    return content["settings"].get("epochs"), epochs


def place(state: "TrainState") -> str:
    """How far a run is, in words."""
    return f"after epoch {state.epoch}" + (f" and {state.step} batches of the next" if state.step else "")


def fixed_settings(config: TrainConfig) -> dict[str, str]:
    """What a resumed run must share with its beginning; and the number of epochs, to tell when it changes."""
    names = [field.name for field in dataclasses.fields(config) if field.name not in FREE]
    config = dataclasses.replace(config, loss={name: float(weight) for name, weight in config.loss.items()})
    return {name: str(_as_declared(config, name)) for name in [*names, "epochs"]}


def _as_declared(config: TrainConfig, name: str) -> Any:
    """The setting, a whole number as what it is in args.yaml: 1.0 where the default is no whole number."""
    value = getattr(config, name)
    is_float = isinstance(getattr(TrainConfig, name, None), float) or name == "layer_decay"
    return float(value) if is_float and value is not None else value


def data_digests(config: TrainConfig, sets: "Sequence[SegmentationDataset]" = ()) -> dict[str, str]:
    """Digests of what trains and of what validates: of annotation files, of names and sizes in folders.

    Where the settings name no files, of the names of the images in `sets`, that is of the training and validation set.
    """
    if not config.data:
        return {name: _digest_of_names(data) for name, data in zip(("train", "val"), sets, strict=True)}
    labels = (config.class_names, config.palette)
    first = len(config.data) if config.val else 0
    scored = config.val or config.data
    return {
        "train": _digest(config.data, config.train_only, config.masks, labels),
        "val": _digest(scored, config.masks[first : first + len(scored)], labels),
    }


def _digest(*groups: Iterable[Path | None]) -> str:
    digest = hashlib.sha256()
    for group in groups:
        digest.update(b"\0group")
        for path in filter(None, group):
            digest.update(_of_folder(path) if path.is_dir() else path.read_bytes())
    return digest.hexdigest()


def _digest_of_names(data: "SegmentationDataset") -> str:
    """The pixels of a source of one's own may be costly to make."""
    names = [*data.class_names, *data.ignore_classes, *(data.name(i) for i in range(len(data)))]
    return hashlib.sha256("\0".join(names).encode(errors="surrogatepass")).hexdigest()


def _of_folder(folder: Path) -> bytes:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return "\n".join(f"{file.relative_to(folder)} {file.stat().st_size}" for file in files).encode()
