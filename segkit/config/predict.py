"""The settings of the commands that run models: infer.py, evaluate, tune."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from segkit.config.checks import check, check_finite, check_workers, default_of, expand_user
from segkit.config.sources import LabelConfig
from segkit.config.words import NO_CRF, CRFWords, Folder, OfClasses, Sources
from segkit.errors import UsageError
from segkit.files import MAX_PIXELS


@dataclass(frozen=True)
class PredictConfig:
    """How models turn an image into a label map; shared by the commands that infer."""

    weights: Annotated[tuple[Path, ...], arg(metavar="FILE|RUN ...")] = ()
    """Model files or run folders, one of --fold all for its folds; several are averaged. By default the newest run."""
    member_weights: tuple[float, ...] = ()
    """Weight of each model in the average. By default equal."""
    tta: Annotated[str | None, arg(metavar="PRESET")] = None
    """Test-time augmentation by name, such as seed_vflip_multiscale, in place of the next four."""
    flips: Literal["none", "h", "v", "hv", "d4"] = "none"
    """Test-time flips, beside the image as it is: h(orizontal), v(ertical), both, d4 with quarter turns."""
    scales: tuple[float, ...] = (1.0,)
    """Test-time scales."""
    brightness: tuple[float, ...] = (1.0,)
    """Test-time factors of brightness."""
    merge: Literal["mean", "gmean", "max", "min", "vote", "sharpened"] = "mean"
    """What becomes of the views' probabilities; gmean is the softmax of the mean logits."""
    window: int = 0
    """Side of a sliding window for images that are larger, in pixels; 0 runs them whole."""
    window_overlap: float = 0.5
    """Share of a window that the next one covers again."""
    class_bias: OfClasses = field(default_factory=dict)
    """Added to the log-probabilities of single classes: above 0 a class is found more often; see segkit tune."""
    crf: CRFWords = None
    """Refine with a dense CRF: a preset (seed, deeplab_v2_resnet101, ...) and NAME=VALUE for single parameters."""
    compile: bool = False
    """Compile the models for each size of image, in half a minute or so; pays after dozens of images of a size."""
    amp: Literal["off", "bf16"] = "off"
    """bf16: half the time or less where the processor computes in bfloat16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        if self.crf is not None and list(self.crf) in NO_CRF:  # as the word of a file
            object.__setattr__(self, "crf", None)
        check_finite(self)
        for name in ("scales", "brightness"):
            check(self, name, bool(getattr(self, name)) and min(getattr(self, name)) > 0, "positive")
        check(self, "window", self.window >= 0, "0 or more")
        check(self, "window_overlap", 0 <= self.window_overlap < 1, "at least 0 and less than 1")
        if self.member_weights and len(self.member_weights) != len(self.weights):
            raise UsageError(
                f"--member-weights needs one weight for each of the {len(self.weights)} --weights, "
                f"got {len(self.member_weights)}"
            )
        given = [n for n in ("flips", "scales", "brightness", "merge") if getattr(self, n) != default_of(self, n)]
        if self.tta is not None and given:
            raise UsageError(f"--tta {self.tta} says it all; it does not go with --{given[0]}")


@dataclass(frozen=True)
class InferConfig(PredictConfig):
    """Segment photographs: index PNGs, overlays and a manifest. Without arguments, the newest run on the demo set."""

    source: Annotated[str | None, arg(metavar="FOLDER|IMAGE|GLOB|LIST.txt|JSON|VIDEO")] = None
    """What to segment; a list has a path in each line. By default the demo's validation images."""
    images: Folder = None
    """Folder of the images of a COCO JSON or a list. By default its own."""
    exif: Literal["apply", "ignore"] = "apply"
    """Turn images as their EXIF orientation says, or none."""
    max_pixels: Annotated[int, arg(metavar="N")] = MAX_PIXELS
    """Refuse larger images, before they are decoded; for larger ones see --window."""
    out: Folder = None
    """Folder for the results. By default a new one below runs/."""
    save: tuple[Literal["mask", "overlay", "probs", "coco", "submission", "pseudo"], ...] = ("mask", "overlay")
    """Results: index PNGs; overlays; probabilities (.npz); COCO JSON; submission CSV; pseudo labels for training."""
    submission_sample: Annotated[Path | None, arg(metavar="FILE")] = None
    """Sample submission whose ids and order the submission takes; they must be those of the images."""
    submission_size: int = 256
    """Height and width of the submission's maps, in pixels."""
    pseudo_threshold: float = 0.8
    """Lowest probability of a pseudo label; less sure pixels are ignored in training."""
    pseudo_class_thresholds: OfClasses = field(default_factory=dict)
    """The same for single classes."""
    pseudo_min_share: float = 0.5
    """Least share of sure pixels of an image that becomes a pseudo label."""
    skip_existing: bool = False
    """Go on in --out: images whose results are there are left out."""
    workers: int | None = None
    """Processes of the CRF. By default one for each core, at most eight."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expand_user(self, "source")
        check_workers(self)
        check(self, "submission_size", self.submission_size >= 1, "at least 1")
        for name in ("pseudo_threshold", "pseudo_min_share"):
            check(self, name, 0 <= getattr(self, name) <= 1, "in 0..1")
        if not self.save:
            raise UsageError("--save needs at least one kind of result")
        if self.skip_existing and self.out is None:
            raise UsageError("--skip-existing needs --out, the folder to go on in")
        if self.skip_existing and not {"mask"} <= set(self.save):
            raise UsageError("--skip-existing goes by the masks: add mask to --save")
        if self.skip_existing and "pseudo" in self.save:
            raise UsageError("--skip-existing cannot make pseudo labels of images that it leaves out")
        if self.submission_sample and "submission" not in self.save:
            raise UsageError("--submission-sample needs --save submission")


@dataclass(frozen=True)
class ScoreConfig(PredictConfig, LabelConfig):
    """Images whose truth is known, and how models predict them; shared by the commands that score."""

    data: Sources = ()
    """COCO JSON files to score on; or folders of images, with --masks."""
    workers: int | None = None
    """Processes of the CRF. By default one for each core, at most eight."""
    out: Folder = None
    """Folder for the results. By default a new one below runs/."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expand_user(self, "mask_cache")
        check_workers(self)
        check(self, "data", bool(self.data), "a COCO JSON file or more")


@dataclass(frozen=True)
class EvaluateConfig(ScoreConfig):
    """Score models on images whose truth is known: table, CSVs, worst images; or compare them with others."""

    compare: Annotated[tuple[Path, ...], arg(metavar="FILE|RUN ...")] = ()
    """Models to compare with, under the same options; differences are --weights less --compare."""
    worst: int = 6
    """Images in the pictures of the worst ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "worst", self.worst >= 0, "0 or more")


@dataclass(frozen=True)
class TuneConfig(ScoreConfig):
    """Find member weights, flips, scales, class biases and a CRF that help on images held out; print the infer command.

    --flips and --scales are what there is to choose from, and --crf lets dense CRFs take part.
    """

    flips: Literal["none", "h", "v", "hv", "d4"] = "h"
    """Flips to choose from."""
    scales: tuple[float, ...] = (0.75, 1.0, 1.25)
    """Scales to choose from."""
    pixels: int = 8192
    """Pixels of an image, on average, at which the probabilities are kept; the CRF is judged on all of them."""
    folds: int = 5
    """Parts of the images; what is chosen on all but one is scored on that one."""
    margin: float = 0.001
    """Gain of mIoU on images held out, beyond which an ingredient is kept."""
    seed: int = 0
    """Of the folds and of the pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tta", "member_weights", "brightness", "merge", "class_bias"):
            if getattr(self, name) != default_of(self, name):
                raise UsageError(f"--{name.replace('_', '-')} does not go with tune, which chooses for --merge mean")
        check(self, "pixels", self.pixels >= 1, "at least 1")
        check(self, "folds", self.folds >= 2, "at least 2")
        check(self, "margin", self.margin >= 0, "0 or more")
