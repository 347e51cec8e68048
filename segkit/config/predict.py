"""Settings of the commands that run models: infer.py, evaluate, tune."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from segkit.config.checks import check, check_finite, check_workers, default_of
from segkit.config.data import LabelConfig
from segkit.config.setting_types import NO_CRF, BatchSize, CRFWords, Folder, Modules, OfClasses, PathOrWord, Sources
from segkit.errors import UsageError
from segkit.files import MAX_PIXELS


@dataclass(frozen=True)
class PredictConfig:
    """How models turn an image into a mask. The base of all commands that predict."""

    weights: Annotated[tuple[Path, ...], arg(metavar="FILE|RUN ...")] = ()
    """Model files or run folders; several are averaged, as are the folds of a run. By default the newest run."""
    member_weights: Annotated[tuple[float, ...], arg(metavar="WEIGHT ...")] = ()
    """Weight of each model in the average. By default all equal."""
    mean: Annotated[tuple[float, ...], arg(metavar="NUMBER ...")] = ()
    """Only for ONNX files of other programs, with --std and --class-names: mean of each channel of images in 0..1."""
    std: Annotated[tuple[float, ...], arg(metavar="NUMBER ...")] = ()
    """Only for ONNX files of other programs: standard deviation of each channel."""
    tta: Annotated[str | None, arg(metavar="PRESET")] = None
    """Test-time augmentation by name, such as seed_vflip_multiscale, instead of --flips, --scales and the like."""
    flips: Literal["none", "h", "v", "hv", "d4"] = "none"
    """Test-time flips: h (horizontal), v (vertical), hv (both), d4 (flips and quarter turns)."""
    scales: Annotated[tuple[float, ...], arg(metavar="SCALE ...")] = (1.0,)
    """Test-time scales, such as 0.75 1 1.25, times the scale that the model was trained at."""
    full_size: bool = False
    """Run models on photographs at full size, even if they were trained on photographs that were shrunk first."""
    brightness: Annotated[tuple[float, ...], arg(metavar="FACTOR ...")] = (1.0,)
    """Test-time brightness factors."""
    merge: Literal["mean", "gmean", "logits-sum", "max", "min", "vote", "sharpened"] = "mean"
    """How the test-time views are merged. gmean: softmax of the mean logits. logits-sum: of their sum over models."""
    resize: Literal["bilinear", "nearest"] = "bilinear"
    """How images are resized to --scales, and predictions back. nearest: as ttach, for its results."""
    window: Annotated[int | None, arg(metavar="PIXELS")] = None
    """Predict larger images in sliding windows of this side. 0: whole. By default as training validated the model."""
    window_overlap: Annotated[float, arg(metavar="SHARE")] = 0.5
    """Share of a --window that overlaps with the next one, at least 0 and less than 1."""
    imports: Modules = ()
    """Python modules to import first, such as the module with your own decoder. Importing runs their code."""
    class_bias: OfClasses = field(default_factory=dict)
    """Add to the log-probabilities of a class; above 0 it is predicted more often. `segkit tune` finds values."""
    crf: CRFWords = None
    """Refine masks with a dense CRF: a preset (seed, deeplab_v2_resnet101 ...), or parameters. off: no CRF."""
    compile: bool = False
    """Compile the models: takes about half a minute per image size, pays after dozens of images of that size."""
    amp: Literal["off", "bf16"] = "off"
    """bf16: half the time or less, if the processor computes in bfloat16."""
    engine: Literal["torch", "onnx"] = "torch"
    """onnx: export each model once to the user's cache, and run it by onnxruntime; faster on a CPU."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1 or mps. auto: the GPU if there is one."""

    def __post_init__(self) -> None:
        if isinstance(self.crf, Sequence) and list(self.crf) in NO_CRF:  # a file may say `crf: off`
            object.__setattr__(self, "crf", None)
        check_finite(self)
        for name in ("scales", "brightness"):
            check(self, name, bool(getattr(self, name)) and min(getattr(self, name)) > 0, "positive")
        check(self, "window", self.window is None or self.window >= 0, "0 or more")
        check(self, "window_overlap", 0 <= self.window_overlap < 1, "at least 0 and less than 1")
        if not self.window and self.window_overlap != default_of(self, "window_overlap"):
            raise UsageError("`window_overlap` needs `window`, the side of the windows")
        if self.member_weights and len(self.member_weights) != len(self.weights):
            raise UsageError(
                f"`member_weights` needs one weight for each of the {len(self.weights)} `weights`, "
                f"got {len(self.member_weights)}"
            )
        changed = [
            n for n in ("flips", "scales", "brightness", "merge", "resize") if getattr(self, n) != default_of(self, n)
        ]
        for name in ("compile", "amp") if self.engine == "onnx" else ():
            if getattr(self, name) != default_of(self, name):
                raise UsageError(f"`{name}` is of torch, so it does not go with `engine=onnx`")
        if bool(self.mean) != bool(self.std):
            raise UsageError("`mean` and `std` belong together: give both, for an ONNX file of another program")
        if self.tta is not None and changed:
            raise UsageError(f"`tta` sets all test-time options, so it does not go with `{changed[0]}`")


@dataclass(frozen=True)
class InferConfig(PredictConfig):
    """Segment images and write masks and overlays. By default the newest run."""

    source: Annotated[PathOrWord | None, arg(metavar="FOLDER|IMAGE|GLOB|LIST.txt|JSON|VIDEO")] = None
    """What to segment; a list has one path per line. By default the validation images of the demo."""
    images: Folder = None
    """Image folder of a COCO JSON file or a list. By default the folder of that file."""
    class_names: Annotated[Path | None, arg(metavar="FILE")] = None
    """Only for ONNX files of other programs: text file with the names of the classes, one per line."""
    exif: Literal["apply", "ignore"] = "apply"
    """apply: rotate images by their EXIF orientation. ignore: never rotate."""
    max_pixels: Annotated[int, arg(metavar="N")] = MAX_PIXELS
    """Refuse images with more pixels than this, before decoding them. For large images see --window."""
    out: Folder = None
    """Folder for the results. By default a new folder in runs/."""
    save: Annotated[
        tuple[Literal["mask", "overlay", "probs", "coco", "submission", "pseudo"], ...], arg(metavar="KIND ...")
    ] = ("mask", "overlay")
    """What to write: mask (PNG), overlay, probs (.npz), coco (JSON), submission (CSV), pseudo (labels to train on)."""
    submission_sample: Annotated[Path | None, arg(metavar="FILE")] = None
    """Sample submission that defines the ids and their order; they must match the images."""
    submission_size: Annotated[int, arg(metavar="PIXELS")] = 256
    """Height and width of the masks in the submission."""
    pseudo_threshold: Annotated[float, arg(metavar="PROB")] = 0.8
    """Lowest probability of a pseudo label, 0 to 1; training ignores pixels below it."""
    pseudo_class_thresholds: OfClasses = field(default_factory=dict)
    """Thresholds of single classes, instead of --pseudo-threshold."""
    pseudo_min_share: Annotated[float, arg(metavar="SHARE")] = 0.5
    """Write pseudo labels only for images with at least this share of labelled pixels, 0 to 1."""
    skip_existing: bool = False
    """Continue in --out, with the same models and settings: skip images whose results exist, unless they changed."""
    batch_size: BatchSize = "auto"
    """Images of the same size to run at once. auto: what fits a GPU; on a CPU one, or several small ones."""
    workers: Annotated[int | None, arg(metavar="N")] = None
    """Processes of the CRF. By default one per core, at most eight."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_workers(self)
        check(self, "batch_size", self.batch_size == "auto" or self.batch_size >= 1, "at least 1, or auto")
        check(self, "submission_size", self.submission_size >= 1, "at least 1")
        for name in ("pseudo_threshold", "pseudo_min_share"):
            check(self, name, 0 <= getattr(self, name) <= 1, "in 0..1")
        if not self.save:
            raise UsageError("`save` needs at least one kind of result")
        if self.skip_existing and self.out is None:
            raise UsageError("`skip_existing` needs `out`, the folder to continue in")
        if self.skip_existing and "mask" not in self.save:
            raise UsageError("`skip_existing` looks for the masks: add mask to `save`")
        if self.skip_existing and "pseudo" in self.save:
            raise UsageError('`skip_existing` does not go with `save="pseudo"`, which needs the skipped images too')
        if self.submission_sample and "submission" not in self.save:
            raise UsageError('`submission_sample` needs `save="submission"`')


@dataclass(frozen=True)
class ScoreConfig(PredictConfig, LabelConfig):
    """Labelled images and how models predict them. The base of the commands that score."""

    data: Sources = ()
    """COCO JSON files to score on; what another labelling tool exported; or folders of images, with --masks."""
    split: Literal["train", "val", "test"] = "val"
    """Split to score on, if --data has several."""
    workers: Annotated[int | None, arg(metavar="N")] = None
    """Processes of the CRF. By default one per core, at most eight."""
    out: Folder = None
    """Folder for the results. By default a new folder in runs/."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_workers(self)
        if not self.data:
            raise UsageError("`data` needs at least one COCO JSON file or folder")


@dataclass(frozen=True)
class EvaluateConfig(ScoreConfig):
    """Score models on labelled images, and compare them with other models."""

    compare: Annotated[tuple[Path, ...], arg(metavar="FILE|RUN ...")] = ()
    """Models to compare with, under the same options. Differences are --weights minus --compare."""
    worst: Annotated[int, arg(metavar="N")] = 6
    """Number of images in the pictures of the worst images."""
    batch_size: BatchSize = "auto"
    """Images of the same size to run at once. auto: what fits a GPU; on a CPU one, or several small ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "batch_size", self.batch_size == "auto" or self.batch_size >= 1, "at least 1, or auto")
        check(self, "worst", self.worst >= 0, "0 or more")


@dataclass(frozen=True)
class TuneConfig(ScoreConfig):
    """Find model weights, flips, scales, class biases and a CRF with a higher mIoU.

    Chooses among --flips and --scales, and among dense CRFs if --crf is set.
    """

    flips: Literal["none", "h", "v", "hv", "d4"] = "h"
    """Flips to choose from: h (horizontal), v (vertical), hv (both), d4 (flips and quarter turns)."""
    scales: Annotated[tuple[float, ...], arg(metavar="SCALE ...")] = (0.75, 1.0, 1.25)
    """Scales to choose from."""
    pixels: Annotated[int, arg(metavar="N")] = 8192
    """Pixels per image, on average, whose probabilities are kept. CRFs are scored on all pixels."""
    folds: Annotated[int, arg(metavar="K")] = 5
    """Folds of the images, at least 2; each is scored with what was chosen on the others."""
    margin: Annotated[float, arg(metavar="GAIN")] = 0.001
    """Keep a change only if it raises the held-out mIoU by more than this, 0 or more."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the folds and of the kept pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in CHOSEN_BY_TUNE:
            if getattr(self, name) != default_of(self, name):
                raise UsageError(f'`{name}` does not go with tune, which chooses for `merge="mean"`')
        if self.crf is not None and not isinstance(self.crf, Sequence):
            raise UsageError("tune chooses a CRF by words: `crf` takes a preset and NAME=VALUE, or True for all")
        check(self, "pixels", self.pixels >= 1, "at least 1")
        check(self, "folds", self.folds >= 2, "at least 2")
        check(self, "margin", self.margin >= 0, "0 or more")


CHOSEN_BY_TUNE = ("tta", "member_weights", "brightness", "merge", "resize", "class_bias")
