"""Start: whether a training begins as a new run or resumes one, decided once for everything that follows."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.config import TrainConfig
from segkit.data import SegmentationDataset
from segkit.errors import SegkitError
from segkit.folds.split import RULE
from segkit.runs import RunFolder, RunLock, check_free, check_writable, create_run_folder, run_to_resume
from segkit.training import Ranks, TrainState, load_state, read_checkpoint
from segkit.training.checkpoint import changed_data, random_states
from segkit.training.state import has_ended

_log = logging.getLogger(__name__)
# Settings that may change when a run is resumed. The data is compared by its content instead.
FREE = {
    *("data", "val", "train_only", "images", "masks", "class_names", "palette", "mask_cache", "allow_outside_root"),
    *("epochs", "early_stopping", "save_every", "log", "pretrained", "init_from", "nan_policy"),
    *("out", "resume", "allow_data_change", "device", "workers", "compile", "recipe", "sync_bn"),
}


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
        out = create_run_folder(self.folder, "train", may_have_begun=self.may_have_begun, can_resume=True)
        lock.take(out)
        if self.folder is not None:  # another training that started at the same time may have been faster
            check_free(out, may_have_begun=self.may_have_begun, can_resume=True)
        return RunFolder(out)


def find_start(config: TrainConfig, lock: RunLock) -> Start:
    """Return how a training begins by `resume` and `out`; lock and read the run that it resumes.

    Raises:
        UsageError: There is nothing to resume, or another training writes to the folder.
    """
    run = run_to_resume(config.resume, config.out)
    if run is None:
        return Start(config.out, may_have_begun=config.resume == "auto")
    lock.take(run.path)
    is_file = isinstance(config.resume, Path) and config.resume.is_file()
    return Start(run.path, read_run(run, config.resume if is_file else None))


def read_run(run: RunFolder, file: Path | None = None) -> dict[str, Any]:
    """Return the newest checkpoint of a run that is whole, or the one in `file`.

    A damaged last.pt is set aside: at the next save it would replace the whole checkpoint before it. Settings that
    segkit did not have yet when the checkpoint was written have their defaults in it.
    """
    content, refused = read_checkpoint(file or run.path)
    if file is not None and file.name != run.last.name and run.last.is_file():
        try:
            read_checkpoint(run.last)
        except SegkitError as error:
            refused = [str(error)]
    for sentence in refused:
        _log.warning("%s; it is renamed to %s, and the checkpoint before it is used", sentence, run.damaged.name)
        run.last.replace(run.damaged)
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


def resume_run(state: TrainState, content: Mapping[str, Any], ranks: Ranks, *, allow_data_change: bool) -> None:
    """Bring `state` to what a checkpoint holds; the first process warns of each thing that is not as it was.

    Args:
        state: Of a new run with the settings and the data of now.
        content: The checkpoint.
        ranks: The processes.
        allow_data_change: Whether the data may differ from the data that the run began with.
    """
    changed = changed_data(content, state)
    epochs_before, epochs = load_run(state, content, allow_data_change=allow_data_change, rank=ranks.rank)
    warnings = []
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
    if epochs_before != epochs:
        warnings.append(
            f"`epochs` was {epochs_before}, is {epochs}: from here on the learning rate follows the new number, unlike "
            "in a run that had it from the start"
        )
    for warning in warnings if ranks.is_first else ():
        _log.warning(warning)


def position(state: TrainState) -> str:
    """Return how far a run is, in words."""
    return f"after epoch {state.epoch}" + (f" and {state.step} batches of the next" if state.step else "")


def fixed_settings(config: TrainConfig) -> dict[str, str]:
    """Return the settings that a resumed run must share with its start, and `epochs`, which may change."""
    fixed = {}
    for name in [*(field.name for field in dataclasses.fields(config) if field.name not in FREE), "epochs"]:
        value = getattr(config, name)
        # 1 and 1.0 are the same setting, so a whole number becomes a float if the default is one.
        if name == "loss":
            value = {term: float(weight) for term, weight in value.items()}
        elif value is not None and (isinstance(getattr(TrainConfig, name, None), float) or name == "layer_decay"):
            value = float(value)
        fixed[name] = str(value)
    return fixed


def data_digests(config: TrainConfig, sets: Sequence[SegmentationDataset] = ()) -> dict[str, str]:
    """Return digests of the training and the validation data, which a resumed run must share with its start.

    They cover the content of annotation files, and the names and sizes of the files in folders. For data sets of the
    caller, in `sets`, they cover the names of classes and images: to read all pixels could take long.
    """
    if not config.data:
        digests = {}
        for part, data in zip(("train", "val"), sets, strict=True):
            names = [*data.class_names, *data.ignore_classes, *(data.name(i) for i in range(len(data)))]
            digests[part] = hashlib.sha256("\0".join(names).encode(errors="surrogatepass")).hexdigest()
        return digests
    labels = (config.class_names, config.palette)
    first = len(config.data) if config.val else 0
    scored = config.val or config.data
    digests = {
        "train": _digest(config.data, config.train_only, config.masks, labels),
        "val": _digest(scored, config.masks[first : first + len(scored)], labels),
    }
    return {part: f"{digest} folds {RULE}" for part, digest in digests.items()} if config.folds else digests


def _digest(*groups: Iterable[Path | None]) -> str:
    digest = hashlib.sha256()
    for group in groups:
        digest.update(b"\0group")
        for path in filter(None, group):
            if path.is_dir():
                files = sorted(file for file in path.rglob("*") if file.is_file())
                listed = "\n".join(f"{file.relative_to(path)} {file.stat().st_size}" for file in files)
                digest.update(listed.encode(errors="surrogateescape"))
            else:
                digest.update(path.read_bytes())
    return digest.hexdigest()
