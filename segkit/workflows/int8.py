"""export to int8: calibrate, measure the loss, and keep sensitive layers in float if it is too large."""

import logging
import os
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from segkit.config import EvaluateConfig, ExportConfig, from_keywords
from segkit.console import Console, counted, percent, table
from segkit.data import SegmentationDataset
from segkit.data.images import create_reading
from segkit.errors import AccuracyError, DataError, UnreadableFileError, UsageError
from segkit.files import fingerprint, is_file, write_whole
from segkit.folds.split import image_paths
from segkit.inference import Predictor, segment_dataset
from segkit.inference.source import SourceImage, open_source
from segkit.metrics import Interval, PerImageConfusion, bootstrap_difference
from segkit.models import OnnxModel, Segmenter, export_onnx, load_model
from segkit.models.quantize import Calibration, check_packages
from segkit.workflows.datasets import check_model_classes, open_scored
from segkit.workflows.predictors import find_members, tell_rules, with_rules_of_models

_log = logging.getLogger(__name__)

GROUPS = 16  # of layers that are kept in float in turn
RANKED_ON = 4  # photographs
SEARCH_SECONDS = 900  # after which no further layers are tried


@dataclass(frozen=True)
class Int8Accuracy:
    """What int8 costs on labelled images. Shares are in 0..1; NaN for a class without a score.

    Attributes:
        images: Number of images.
        miou_float: mIoU of the file in float32.
        miou: mIoU of the file in int8.
        differences: IoU of each class of int8 minus that of float, by name, and `mIoU`; each with the lower and upper
            end of its 95 % bootstrap interval over the images.
        equal_labels: Share of the pixels that have the same label in int8 and in float.
        text: The table of all of it.
    """

    images: int
    miou_float: float
    miou: float
    differences: dict[str, tuple[float, float, float]]
    equal_labels: float
    text: str

    @property
    def loss(self) -> float:
        """The loss of mIoU, in percentage points."""
        return 100 * (self.miou_float - self.miou)


@dataclass(frozen=True)
class Int8Result:
    """An int8 file.

    Attributes:
        photographs: The names of the photographs that calibrated it.
        float_layers: The modules that stay in float32.
        accuracy: What int8 costs; None if it was not measured.
    """

    photographs: tuple[str, ...]
    float_layers: tuple[str, ...]
    accuracy: Int8Accuracy | None


def write_int8(
    model: Segmenter | OnnxModel, target: Path, config: ExportConfig, console: Console
) -> tuple[float | None, Int8Result]:
    """Write the int8 form of a model, see `segkit.export`.

    Returns:
        The largest difference of the file in float32 from torch, as a share of the largest logit, None if the model is
        an ONNX file; and the result.

    Raises:
        AccuracyError: int8 loses more than `max_loss`, and `accept_loss` is not set; then nothing is written.
    """
    check_packages()
    data = _open_check(model, config, console) if config.check else None
    reading = create_reading(model.data_rules.get("exif", "apply"), EvaluateConfig(data=(Path(),)).max_pixels)
    source = open_source(config.calibrate, config.images[0] if config.images else None, reading=reading)
    photographs = draw_photographs(source, data, config.photographs, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        in_float, in_int8 = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        difference = None
        if isinstance(model, OnnxModel):
            in_float = model.path
        else:
            difference = export_onnx(model, in_float)
            console.print(f"float  differs from torch by at most {difference:.1e} of the largest logit")
        used: list[str] = []
        first: list[Tensor] = []
        inputs = console.progress(inputs_of(model, photographs, used), total=len(photographs))
        calibration = Calibration(in_float, _keep_first(inputs, first, RANKED_ON if data else 0))
        console.print(f"int8   calibrated on {counted(calibration.count, 'photograph')} of {config.calibrate}")
        facts: dict[str, Any] = {"seed": config.seed, "accuracy": None}
        if data is None:
            write_whole(target, calibration.content(facts=facts))
            _log.warning("the accuracy of int8 is not measured; give `check`, labelled images, to measure it")
            return difference, Int8Result(tuple(used), (), None)
        scorer = Scorer(data, in_float, console)

        def measure(layers: Sequence[str]) -> Int8Accuracy:
            in_int8.write_bytes(calibration.content(float_layers=layers))
            return scorer.compare(in_int8)

        layers: tuple[str, ...] = ()
        accuracy = measure(layers)
        if not accuracy.loss <= config.max_loss:
            console.print(f"check  int8 loses {accuracy.loss:.2f} points of mIoU, more than {config.max_loss:g}")
            layers, accuracy = search(calibration, first, measure, accuracy, config.max_loss, console)
        console.print(f"\n{accuracy.text}")
        if not accuracy.loss <= config.max_loss and not config.accept_loss:
            raise AccuracyError(
                f"int8 loses {accuracy.loss:.2f} points of mIoU, more than `max_loss={config.max_loss:g}`, so {target} "
                "is not written; write it anyway by `accept_loss`, or calibrate on photographs that are more like the "
                "ones of `check`"
            )
        facts["accuracy"] = {
            "images": accuracy.images,
            "miou_float": accuracy.miou_float,
            "miou": accuracy.miou,
            "equal_labels": accuracy.equal_labels,
        }
        write_whole(target, calibration.content(float_layers=layers, facts=facts))
        return difference, Int8Result(tuple(used), layers, accuracy)


def draw_photographs(
    source: Sequence[SourceImage], data: SegmentationDataset | None, count: int, seed: int
) -> list[SourceImage]:
    """Draw photographs to calibrate with; none of them is in the check set.

    Args:
        source: The photographs to draw from.
        data: The images of the check set, or None.
        count: How many to draw; all, if there are fewer.
        seed: Seed of the drawing.

    Raises:
        UsageError: All of them are in the check set.
    """
    images = list(source)
    if data is not None:
        checked = [path for path in image_paths(data) if is_file(path)]
        places = set(map(os.path.realpath, checked))
        sizes = {os.path.getsize(path) for path in checked}
        contents = None
        kept = []
        for image in images:
            if image.path is not None and is_file(image.path):
                if os.path.realpath(image.path) in places:
                    continue
                if os.path.getsize(image.path) in sizes:  # a copy under another name has the same size
                    contents = contents or {fingerprint(Path(path)) for path in checked}
                    if fingerprint(image.path) in contents:
                        continue
            kept.append(image)
        if not kept:
            raise UsageError(
                "all photographs of `calibrate` are in `check` too, and an image that calibrates cannot measure the "
                "accuracy; give others, such as the training images"
            )
        if len(kept) < len(images):
            dropped = counted(len(images) - len(kept), "photograph")
            _log.warning("%s of `calibrate` in `check` too: not used to calibrate", dropped)
        images = kept
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return [images[i] for i in sorted(chosen)]


def inputs_of(model: Segmenter | OnnxModel, photographs: Sequence[SourceImage], used: list[str]) -> Iterator[Tensor]:
    """Yield what `Predictor` gives to the model for each photograph; one that cannot be read is skipped.

    Args:
        model: The model.
        photographs: The photographs.
        used: Gets the names of the photographs that were read.
    """
    recorder = _Recorder(model)
    predictor = Predictor(recorder, probs="none")
    for photograph in photographs:
        try:
            image = photograph.read()
        except (DataError, UnreadableFileError) as error:
            _log.warning("not used to calibrate: %s", error)
            continue
        predictor(image)
        used.append(str(photograph.name))
        yield from recorder.seen
        recorder.seen.clear()


class _Recorder(nn.Module):
    """Stands in for a model, and keeps its input."""

    def __init__(self, model: Segmenter | OnnxModel) -> None:
        super().__init__()
        self.class_names, self.preprocessing = model.class_names, model.preprocessing
        self.training_scale = model.training_scale
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return images.new_zeros((len(images), len(self.class_names), *images.shape[2:]))


def _keep_first(inputs: Iterator[Tensor], kept: list[Tensor], count: int) -> Iterator[Tensor]:
    for images in inputs:
        if len(kept) < count:
            kept.append(images)
        yield images


def _open_check(model: Segmenter | OnnxModel, config: ExportConfig, console: Console) -> SegmentationDataset:
    """Return the check set, with labels made as in the training."""
    source = model.path if isinstance(model, OnnxModel) else model
    settings = {"weights": [source], "data": config.check, "masks": config.masks}
    if not config.masks:
        settings["images"] = config.images[-1:]
    scored = from_keywords(EvaluateConfig, with_rules_of_models(EvaluateConfig, settings))
    (member,) = find_members(scored.weights)
    tell_rules(scored, [member], console)
    data = open_scored(scored, console, member.class_names, member.palette, member.mask_names)
    check_model_classes(member.class_names, data, "the model")
    return data


class Scorer:
    """Compares int8 files with the file in float32 on labelled images; the float file runs once.

    Args:
        data: The labelled images.
        in_float: The file in float32.
        console: Shows the progress.
    """

    def __init__(self, data: SegmentationDataset, in_float: Path, console: Console) -> None:
        self.data, self.console = data, console
        self._masks: list[bytes] = []  # of the float file, compressed
        self._float = self._score(in_float, lambda index, mask: self._masks.append(zlib.compress(mask.tobytes(), 1)))

    def compare(self, in_int8: Path) -> Int8Accuracy:
        """Return the accuracy of an int8 file."""
        equal = total = 0

        def count(index: int, mask: np.ndarray) -> None:
            nonlocal equal, total
            expected = np.frombuffer(zlib.decompress(self._masks[index]), mask.dtype).reshape(mask.shape)
            equal, total = equal + int((mask == expected).sum()), total + mask.size

        found = self._score(in_int8, count)
        of_float, of_int8 = (images.total().compute() for images in (self._float, found))
        intervals = bootstrap_difference(found, self._float, lambda scores: np.append(scores.iou, scores.miou))
        names = [*self.data.class_names, "mIoU"]
        values = (
            [*of_float.iou.tolist(), of_float.miou],
            [*of_int8.iou.tolist(), of_int8.miou],
        )
        return Int8Accuracy(
            images=len(self.data),
            miou_float=of_float.miou,
            miou=of_int8.miou,
            differences={
                name: (float(estimate), float(low), float(high))
                for name, estimate, low, high in zip(
                    names, intervals.estimate, intervals.low, intervals.high, strict=True
                )
            },
            equal_labels=equal / total,
            text="\n".join(
                [
                    *_rows(names, values, intervals),
                    f"equal labels in {percent(equal / total)} % of the pixels of {counted(len(self.data), 'image')}",
                ]
            ),
        )

    def _score(self, file: Path, see: Any) -> PerImageConfusion:
        result = PerImageConfusion(
            len(self.data.class_names), class_names=self.data.class_names, exclude=self.data.ignored_labels
        )
        with closing(Predictor(load_model(file))) as predictor:
            labelled = self.console.progress(segment_dataset(self.data, predictor), total=len(self.data))
            for index, one in enumerate(labelled):
                result.update(one.prediction.mask, one.target)
                see(index, one.prediction.mask)
        return result


def _rows(names: Sequence[str], values: Sequence[Sequence[float]], intervals: Interval) -> list[str]:
    rows = []
    for name, before, after, difference, low, high in zip(
        names, *values, intervals.estimate, intervals.low, intervals.high, strict=True
    ):
        if np.isnan(difference):
            rows.append([name, percent(before), percent(after), "-", "-"])
            continue
        span = f"[{100 * low:+.2f}, {100 * high:+.2f}]"
        rows.append([name, percent(before), percent(after), f"{100 * difference:+.2f}", span])
    return table(["class", "IoU % float", "int8", "difference", "95 % of resamples"], rows)


def search(
    calibration: Calibration,
    images: Sequence[Tensor],
    measure: Any,
    accuracy: Int8Accuracy,
    max_loss: float,
    console: Console,
) -> tuple[tuple[str, ...], Int8Accuracy]:
    """Keep more and more layers in float, the most sensitive first, until int8 loses no more than `max_loss`.

    Which layers are sensitive is found on photographs of the calibration, so that the check set stays unseen. At most
    half of the layers stay in float, and no further ones are tried after `SEARCH_SECONDS`.

    Returns:
        The modules in float, and the accuracy; the best ones, if none are good enough.
    """
    end = time.monotonic() + SEARCH_SECONDS
    best: tuple[tuple[str, ...], Int8Accuracy] = ((), accuracy)
    groups = calibration.groups(GROUPS)
    kept: tuple[str, ...] = ()
    for group, remains in calibration.rank(images, groups, seconds=SEARCH_SECONDS / 2):
        kept += (group,)
        if remains >= 1 or 2 * calibration.count_layers(kept) > len(calibration.layers) or time.monotonic() > end:
            break
        accuracy = measure(kept)
        console.print(f"float  {'and ' * (len(kept) > 1)}{group}: int8 loses {accuracy.loss:.2f} points")
        if accuracy.loss < best[1].loss:
            best = kept, accuracy
        if accuracy.loss <= max_loss:
            break
    return best
