"""Every setting of the commands, once: type, default, unit, help. Imports no torch, so that --help is instant."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

RECIPES = Path(__file__).parent / "recipes"


def _parse_weights(words: list[str]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in (word.split("=") for word in words)}
    except ValueError:
        raise ValueError(f"expected NAME=WEIGHT such as ce=0.6 dice=0.4, got {' '.join(words)!r}") from None


def _parse_bias(words: list[str]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in (word.rsplit("=", 1) for word in words)}
    except ValueError:
        raise ValueError(f"expected NAME=VALUE such as car=0.5 street=-0.25, got {' '.join(words)!r}") from None


def _parse_options(words: list[str]) -> dict[str, Any]:
    if not all("=" in word for word in words):
        raise ValueError(f"expected NAME=VALUE such as channels=64, got {' '.join(words)!r}")
    return {name: yaml.safe_load(value) for name, value in (word.split("=", 1) for word in words)}


def _parse_resume(words: list[str]) -> Path | bool:
    if len(words) > 1:
        raise ValueError(f"--resume takes one run folder or checkpoint, got {' '.join(words)!r}")
    return Path(words[0]) if words else True


def _mapping_spec(parse: Any, metavar: str) -> PrimitiveConstructorSpec:
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=metavar,
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={item}" for name, item in value.items()],
    )


Weights = Annotated[dict[str, float], _mapping_spec(_parse_weights, "NAME=WEIGHT ...")]
Options = Annotated[dict[str, Any], _mapping_spec(_parse_options, "NAME=VALUE ...")]
ClassBias = Annotated[dict[str, float], _mapping_spec(_parse_bias, "NAME=VALUE ...")]
# None for no CRF; no word for the default one.
CRFWords = Annotated[
    tuple[str, ...] | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[PRESET] [NAME=VALUE ...]",
        instance_from_str=tuple,
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: ["off"] if value is None else list(value),
    ),
]
# False for a new run; True, or no word, for the one in --out.
ResumeWords = Annotated[
    Path | bool,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[RUN|FILE]",
        instance_from_str=lambda words: _parse_resume(words),
        is_instance=lambda value: isinstance(value, Path | bool),
        str_from_instance=lambda value: [] if value is True else ["off" if value is False else str(value)],
    ),
]
Files = Annotated[tuple[Path, ...], arg(metavar="FILE ...")]
Sources = Annotated[tuple[Path, ...], arg(metavar="FILE|DIR ...")]
Folders = Annotated[tuple[Path, ...], arg(metavar="DIR ...")]
Folder = Annotated[Path | None, arg(metavar="DIR")]


@dataclass(frozen=True)
class TrainConfig:
    """Train a segmentation model on photographs with COCO annotations. Without --data, on a drawn demo set."""

    data: Sources = ()
    """COCO JSON files to train on; or folders of images, with --masks."""
    val: Sources = ()
    """The same to validate on; without it a share of --data is split off."""
    folds: Annotated[int | None, arg(metavar="K")] = None
    """Divide --data into K folds with even shares of every class, see `python -m segkit folds`; needs --fold."""
    fold: Annotated[int | None, arg(metavar="I")] = None
    """The fold to validate on, 0 to K - 1; the others train."""
    train_only: Sources = ()
    """The same, such as pseudo labels, whose images never validate."""
    images: Folders = ()
    """Folder of the images: one for all JSON files, or one for each of them in turn. By default each's own."""
    masks: Folders = ()
    """Folders of masks (index PNGs, or in colours with --palette), one for each of --data, --val, --train-only."""
    class_names: Annotated[Path | None, arg(metavar="FILE")] = None
    """Class names of the masks, one in each line, in the order of the pixel values."""
    palette: Annotated[Path | None, arg(metavar="FILE")] = None
    """What the colours of the masks mean: in each line a name and its red, green and blue."""
    overlap: Literal["smallest", "last", "max-id"] = "smallest"
    """What lies on top where objects overlap: the smallest, the last in the file, or the highest category id."""
    crowd: Literal["paint", "ignore"] = "paint"
    """Whether crowds (iscrowd) are painted like other objects, or ignored."""
    ignore_classes: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """Classes that are neither learnt nor scored."""
    on_bad: Literal["error", "skip"] = "error"
    """skip leaves out training images that cannot be used; validation images must all be good."""
    mask_cache: Annotated[str, arg(metavar="auto|memory|off|DIR")] = "auto"
    """Where the masks of JSON files are kept once they are drawn. auto: in the user's cache folder."""
    allow_outside_root: bool = False
    """Let JSON files name images outside their image folder."""
    val_fraction: float = 0.2
    """Share of the images that is split off where --val is not given."""

    model: str = "fpn"
    """Architecture: deeplabv3plus, fpn or unet."""
    backbone: str = "tf_efficientnet_b3"
    """Any convolutional backbone of timm, with a tag where wanted (tf_efficientnet_b4.ns_jft_in1k)."""
    pretrained: Annotated[str, arg(metavar="true|false|FILE")] = "true"
    """Backbone weights: true asks timm's hub, false draws random ones, or a safetensors file."""
    output_stride: Literal[8, 16, 32] | None = None
    """Stride of the deepest features. By default 16 for deeplabv3plus, 32 for the others."""
    decoder: Options = field(default_factory=dict)
    """Options of the decoder (channels=128 norm=group)."""

    crop: int = 512
    """Height and width of the training crops, in pixels."""
    augment: str = "standard"
    """Augmentation: none, flip, light or standard; seed1 or seed2, which shrink the whole image to the crop."""
    decode_at_least: int = 0
    """Decode training images at a half, a quarter or an eighth, as far as both sides stay at least this; 0: whole."""
    epochs: int = 40
    """Passes over the training images."""
    batch_size: int = 16
    """Images in a batch."""
    rare_threshold: float = 0.0
    """Show images more often whose classes are in a smaller share of the images than this (0.1); 0: all alike."""
    rare_crops: float = 0.0
    """Share of the crops that are drawn around a rare class: one with few pixels."""
    mix: Literal["none", "cutmix", "copy-paste"] = "none"
    """Make half of the crops of two: a rectangle of another one, or its objects of rare classes."""

    optimizer: str = "adamw"
    """Any optimizer of timm."""
    lr: float = 3e-4
    """Highest learning rate; it rises over --warmup-epochs and then follows --schedule."""
    backbone_lr_factor: float = 1.0
    """The backbone's learning rate, as a share of --lr."""
    layer_decay: float | None = None
    """Factor of the learning rate from each group of the backbone's layers to the one before it (0.9)."""
    weight_decay: float = 0.01
    """Weight decay, not applied to norms and biases."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises from a hundredth."""
    schedule: Literal["cosine", "poly", "plateau", "constant"] = "cosine"
    """Course of the learning rate; plateau: a tenth after three epochs that are no better than the best."""
    monitor: Literal["loss", "miou"] = "loss"
    """What plateau looks at, on the validation images: the loss, which is to fall, or the mIoU, which is to rise."""
    clip_grad: float = 5.0
    """Largest norm of the gradient; 0 switches clipping off."""
    accumulate: Annotated[int, arg(metavar="N")] = 1
    """Batches whose gradients make one step: --batch-size 4 --accumulate 4 learns as from batches of 16."""
    freeze_backbone: Annotated[int, arg(metavar="EPOCHS")] = 0
    """Epochs at the start in which the backbone does not learn."""
    ema: Annotated[float, arg(metavar="DECAY")] = 0.0
    """Average the weights over the steps, with this decay (0.999); both are scored, the better one is kept. 0: off."""
    early_stopping: Annotated[int, arg(metavar="EPOCHS")] = 0
    """Stop after so many epochs without a better mIoU; 0: never."""
    loss: Weights = field(default_factory=lambda: {"ce": 1.0})
    """Losses and their weights: ce, bce, dice, jaccard, tversky, focal, lovasz, ohem and more."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes, in ce and bce."""
    class_weights: Literal["none", "inverse", "sqrt", "effective"] = "none"
    """Weights of the classes in ce and its kin, by how many pixels (effective: images) they have."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision. auto: on for CUDA (bf16 where it is fast), off elsewhere."""
    compile: bool = False
    """Compile the training step, which takes minutes and pays in long runs; needs a C++ compiler."""
    deterministic: bool = False
    """The same results on every run on CUDA too, where torch can; slower. On a CPU they are so anyway."""

    out: Folder = None
    """Run folder. By default a new one below runs/."""
    resume: ResumeWords = False
    """Go on where a run stopped, with its settings: a run folder or a checkpoint, by default --out."""
    allow_data_change: bool = False
    """Resume though the data is not what the run began with."""
    save_every: Annotated[int, arg(metavar="STEPS")] = 0
    """Steps after which the state is saved within an epoch; 0: after each epoch only."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    workers: int | None = None
    """Loader processes. By default one for each core, at most eight."""
    seed: int = 0
    """Seed of weights, order and augmentation."""

    def __post_init__(self) -> None:
        for name in ("crop", "epochs", "batch_size", "accumulate"):
            _check(self, name, getattr(self, name) >= 1, "at least 1")
        _check(self, "lr", self.lr > 0, "positive")
        _check(self, "val_fraction", 0 < self.val_fraction < 1, "between 0 and 1")
        for name in ("label_smoothing", "rare_threshold", "rare_crops"):
            _check(self, name, 0 <= getattr(self, name) <= 1, "in 0..1")
        _check(self, "ema", 0 <= self.ema < 1, "at least 0 and less than 1")
        _check(self, "layer_decay", self.layer_decay is None or 0 < self.layer_decay <= 1, "in 0..1, and not 0")
        for name in (
            "weight_decay",
            "warmup_epochs",
            "clip_grad",
            "seed",
            "save_every",
            "freeze_backbone",
            "early_stopping",
            "backbone_lr_factor",
            "decode_at_least",
        ):
            _check(self, name, getattr(self, name) >= 0, "0 or more")
        _check_folds(self)
        if self.resume is True and self.out is None:
            raise ValueError("--resume needs --out, the folder of the run to go on with, or its name: --resume runs/x")
        if isinstance(self.resume, Path) and self.out not in (None, self.resume, self.resume.parent):
            raise ValueError("--resume RUN goes on in the run's own folder; leave out --out")


@dataclass(frozen=True)
class PredictConfig:
    """How models turn an image into a label map; shared by the commands that infer."""

    weights: Annotated[tuple[Path, ...], arg(metavar="FILE|RUN ...")] = ()
    """Model files or run folders; the probabilities of several are averaged. By default the newest run."""
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
    class_bias: ClassBias = field(default_factory=dict)
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
        for name in ("scales", "brightness"):
            _check(self, name, bool(getattr(self, name)) and min(getattr(self, name)) > 0, "positive")
        _check(self, "window", self.window >= 0, "0 or more")
        _check(self, "window_overlap", 0 <= self.window_overlap < 1, "at least 0 and less than 1")
        if self.member_weights and len(self.member_weights) != len(self.weights):
            raise ValueError(
                f"--member-weights needs one weight for each of the {len(self.weights)} --weights, "
                f"got {len(self.member_weights)}"
            )
        given = [n for n in ("flips", "scales", "brightness", "merge") if getattr(self, n) != _default(self, n)]
        if self.tta is not None and given:
            raise ValueError(f"--tta {self.tta} says it all; it does not go with --{given[0]}")


@dataclass(frozen=True)
class InferConfig(PredictConfig):
    """Segment photographs: index PNGs, overlays and a manifest. Without arguments, the newest run on the demo set."""

    source: Annotated[str | None, arg(metavar="FOLDER|IMAGE|GLOB|LIST.txt|JSON|VIDEO")] = None
    """What to segment; a list has a path in each line. By default the demo's validation images."""
    images: Folder = None
    """Folder of the images of a COCO JSON or a list. By default its own."""
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
    pseudo_class_thresholds: Weights = field(default_factory=dict)
    """The same for single classes."""
    pseudo_min_share: float = 0.5
    """Least share of sure pixels of an image that becomes a pseudo label."""
    skip_existing: bool = False
    """Go on in --out: images whose results are there are left out."""
    workers: int | None = None
    """Processes of the CRF. By default one for each core, at most eight."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "submission_size", self.submission_size >= 1, "at least 1")
        for name in ("pseudo_threshold", "pseudo_min_share"):
            _check(self, name, 0 <= getattr(self, name) <= 1, "in 0..1")
        if not self.save:
            raise ValueError("--save needs at least one kind of result")
        if self.skip_existing and self.out is None:
            raise ValueError("--skip-existing needs --out, the folder to go on in")
        if self.skip_existing and not {"mask"} <= set(self.save):
            raise ValueError("--skip-existing goes by the masks: add mask to --save")
        if self.skip_existing and "pseudo" in self.save:
            raise ValueError("--skip-existing cannot make pseudo labels of images that it leaves out")
        if self.submission_sample and "submission" not in self.save:
            raise ValueError("--submission-sample needs --save submission")


@dataclass(frozen=True)
class ScoreConfig(PredictConfig):
    """Images whose truth is known, and how models predict them; shared by the commands that score."""

    data: Sources = ()
    """COCO JSON files to score on; or folders of images, with --masks."""
    images: Folders = ()
    """Folder of the images: one for all JSON files, or one for each of them in turn. By default each's own."""
    masks: Folders = ()
    """Folders of masks (index PNGs, or in colours with --palette), one for each folder of --data."""
    class_names: Annotated[Path | None, arg(metavar="FILE")] = None
    """Class names of the masks, one in each line, in the order of the pixel values."""
    palette: Annotated[Path | None, arg(metavar="FILE")] = None
    """What the colours of the masks mean: in each line a name and its red, green and blue."""
    overlap: Literal["smallest", "last", "max-id"] = "smallest"
    """What lies on top where objects overlap: the smallest, the last in the file, or the highest category id."""
    crowd: Literal["paint", "ignore"] = "paint"
    """Whether crowds (iscrowd) are painted like other objects, or ignored."""
    ignore_classes: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """Classes that are not scored."""
    mask_cache: Annotated[str, arg(metavar="auto|memory|off|DIR")] = "auto"
    """Where the masks of JSON files are kept once they are drawn. auto: in the user's cache folder."""
    allow_outside_root: bool = False
    """Let JSON files name images outside their image folder."""
    workers: int | None = None
    """Processes of the CRF. By default one for each core, at most eight."""
    out: Folder = None
    """Folder for the results. By default a new one below runs/."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "data", bool(self.data), "a COCO JSON file or more")


@dataclass(frozen=True)
class EvaluateConfig(ScoreConfig):
    """Score models on images whose truth is known: table, CSVs, worst images; or compare them with others."""

    compare: Annotated[tuple[Path, ...], arg(metavar="FILE|RUN ...")] = ()
    """Models to compare with, under the same options; differences are --weights less --compare."""
    worst: int = 6
    """Images in the pictures of the worst ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, "worst", self.worst >= 0, "0 or more")


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
            if getattr(self, name) != _default(self, name):
                raise ValueError(f"--{name.replace('_', '-')} does not go with tune, which chooses for --merge mean")
        _check(self, "pixels", self.pixels >= 1, "at least 1")
        _check(self, "folds", self.folds >= 2, "at least 2")
        _check(self, "margin", self.margin >= 0, "0 or more")


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained model as ONNX, for any batch and image size, and compare it with torch."""

    model: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE|RUN")]
    """Model file or run folder."""
    onnx: Annotated[Path | None, arg(metavar="FILE")] = None
    """The file to write. By default the model's, with the suffix .onnx."""
    overwrite: bool = False
    """Replace the file if it exists."""


@dataclass(frozen=True)
class FoldsConfig:
    """Divide a COCO JSON into k folds with even shares of every class: train_data0.json, valid_data0.json ..."""

    data: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE")]
    """COCO JSON file of all images."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for the files."""
    k: int = 5
    """Number of folds."""
    group_by: Annotated[str | None, arg(metavar="KEY")] = None
    """Key of the image records; images with the same value stay in one fold."""
    near_duplicates: bool = False
    """Keep images that look alike in one fold; reads every image."""
    train_only: Files = ()
    """COCO JSON files, such as pseudo labels, whose images only ever train."""
    images: Folder = None
    """Folder from which the file names start. By default the JSON's own."""
    seed: int = 0
    """Another seed gives another split."""
    overwrite: bool = False
    """Replace the folds that are in --out."""

    def __post_init__(self) -> None:
        _check(self, "k", self.k >= 2, "at least 2")
        _check(self, "seed", self.seed >= 0, "0 or more")


@dataclass(frozen=True)
class CheckConfig:
    """Check data before training: classes, overlaps, faults, oddities, duplicates; changes nothing."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional, arg(metavar="FILE|DIR ...")]
    """COCO JSON files, such as those of training and validation; or folders of images, with --masks."""
    images: Folders = ()
    """Folder of the images: one for all JSON files, or one for each of them in turn. By default each's own."""
    masks: Folders = ()
    """Folders of masks (index PNGs, or in colours with --palette), one for each folder of images."""
    class_names: Annotated[Path | None, arg(metavar="FILE")] = None
    """Class names of the masks, one in each line, in the order of the pixel values."""
    palette: Annotated[Path | None, arg(metavar="FILE")] = None
    """What the colours of the masks mean: in each line a name and its red, green and blue."""
    allow_outside_root: bool = False
    """Let JSON files name images outside their image folder."""
    full: bool = False
    """Decode every image, to find damaged ones, those of one colour, and those that look alike."""
    out: Folder = None
    """Folder for tables and pictures. By default a new one below runs/."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("give the COCO JSON files to check, or folders of images with --masks")


Config = TypeVar("Config", TrainConfig, InferConfig, EvaluateConfig, TuneConfig, ExportConfig, FoldsConfig, CheckConfig)


def parse_args(
    cls: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Config:
    """Reads the command line; a recipe's settings stand before it, so that the command line wins.

    Args:
        cls: The command's settings.
        argv: The arguments; by default those of the process.
        prog: What the help calls the command.
        recipe: Name of a YAML file in `segkit/recipes`.
        settings: More settings that the command line wins over, such as those of `read_settings`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    settings = {**(_read_yaml(RECIPES / f"{recipe}.yaml") if recipe else {}), **(settings or {})}
    return tyro.cli(
        cls,
        prog=prog,
        args=[*_as_flags(settings), *argv],
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def write_yaml(config: TrainConfig | InferConfig, path: Path) -> None:
    """Writes the settings with the names of their flags."""
    plain = {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    temporary = path.with_name(f".{path.name}.tmp")  # a run that is killed here must find its settings again
    temporary.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    temporary.replace(path)


def read_settings(path: Path) -> dict[str, Any]:
    """What `write_yaml` has written, without the settings that are off or empty."""
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: value for name, value in plain.items() if value not in (None, False, [], {}, "")}


def _read_yaml(path: Path) -> dict[str, Any]:
    # BaseLoader leaves every scalar a string: the type of the setting decides, so that 1e-4 is a number.
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def _as_flags(settings: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in settings.items():
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, Mapping):
            words += [f"{key}={item}" for key, item in value.items()]
        elif value is not True:
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return words


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _check_folds(config: TrainConfig) -> None:
    if config.train_only and not config.data:
        raise ValueError("--train-only needs --data, whose images it adds to")
    if config.folds is None and config.fold is None:
        return
    if config.folds is None or config.fold is None:
        raise ValueError("--folds and --fold belong together: --folds 5 --fold 0 validates on the first of five folds")
    if config.val:
        raise ValueError("--folds takes the validation images from --data; leave out --val, or --folds and --fold")
    if not config.data:
        raise ValueError("--folds needs --data, the images to divide")
    _check(config, "folds", config.folds >= 2, "at least 2")
    _check(config, "fold", 0 <= config.fold < config.folds, f"in 0..{config.folds - 1}")


def _default(config: object, name: str) -> Any:
    found = next(f for f in dataclasses.fields(config) if f.name == name)
    return found.default if found.default_factory is dataclasses.MISSING else found.default_factory()


def _check(config: object, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"--{name.replace('_', '-')} must be {expected}, got {getattr(config, name)}")
