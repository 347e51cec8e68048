"""Settings of train.py."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from segkit.config.checks import check, check_finite, check_workers
from segkit.config.data import LabelConfig
from segkit.config.recipes import read_recipe
from segkit.config.setting_types import Folder, Folders, Losses, Modules, Options, PathOrWord, ResumeWords, Sources
from segkit.config.yaml_files import Setting, read_settings
from segkit.errors import UsageError
from segkit.files import with_home
from segkit.names import NO_GROUPS, REGEX
from segkit.runs import run_to_resume

# Arguments of `create_model` that are not options of a decoder, and the settings that set them.
NOT_OF_DECODER = {
    **{"name": "`model`", "backbone": "`backbone`", "output_stride": "`output_stride`", "pretrained": "`pretrained`"},
    **{"aux_head": "`aux_weight`", "image_head": "`image_weight`"},
    **{"class_names": "the data", "num_classes": "the data", "in_channels": "the photographs, which have 3 channels"},
}
# Options of losses that `loss_option` does not take, and what sets them.
NOT_OF_LOSS = {
    **{"label_smoothing": "set by `label_smoothing`", "class_weights": "set by `class_weights`"},
    **{"mode": "multiclass in training", "ignore_index": "255 in training"},
}


@dataclass(frozen=True)
class TrainConfig(LabelConfig):
    """Train a segmentation model on COCO annotations. Without --data, on a demo set."""

    data: Sources = ()
    """COCO JSON files to train on; or folders of images, with --masks. By default a demo set."""
    val: Sources = ()
    """COCO JSON files or folders to validate on. By default a share of --data, see --val-fraction."""
    folds: Annotated[int | None, arg(metavar="K")] = None
    """Divide --data into K folds, at least 2, with an even share of every class. Needs --fold."""
    fold: Annotated[int | Literal["all"] | None, arg(metavar="I|all")] = None
    """Fold to validate on, 0 to K - 1; the other folds train. all: train K models, one after another."""
    group_by: Annotated[str | None, arg(metavar="regex:PATTERN|none")] = None
    """Keep images whose names match alike on one side of a split. By default copies by Roboflow. none: no groups."""
    train_only: Sources = ()
    """COCO JSON files or folders, such as pseudo labels, whose images train and never validate."""
    masks: Folders = ()
    """Mask folders, one for each folder of --data, --val, --train-only: PNGs of class indices, or see --palette."""
    on_bad: Literal["error", "skip"] = "error"
    """error: stop if a training image is missing or damaged. skip: drop it. Bad validation images always stop."""
    max_bad: Annotated[float, arg(metavar="SHARE")] = 0.01
    """Largest share of the training images that --on-bad skip may drop, 0 to 1. One image may always be dropped."""
    val_fraction: Annotated[float, arg(metavar="SHARE")] = 0.2
    """Share of the images that validates if there is no --val, between 0 and 1."""

    recipe: Annotated[str | None, arg(metavar="NAME")] = None
    """Load a named set of settings; --config and the command line override it. `--recipe help` lists the names."""
    model: Annotated[str, arg(metavar="NAME")] = "fpn"
    """Architecture: deeplabv3plus, fpn or unet."""
    backbone: Annotated[str, arg(metavar="NAME")] = "tf_efficientnet_b3"
    """Any timm backbone with feature maps, with or without a weights tag (tf_efficientnet_b4.ns_jft_in1k)."""
    pretrained: Annotated[PathOrWord, arg(metavar="true|false|FILE")] = "true"
    """Backbone weights. true: download timm's. false: random. FILE: a safetensors file."""
    init_from: Annotated[Path | None, arg(metavar="RUN|FILE")] = None
    """Start from the architecture and weights of a segkit model. The head is copied for classes of the same name."""
    output_stride: Annotated[Literal[8, 16, 32] | None, arg(metavar="8|16|32")] = None
    """Stride of the deepest features. By default 16 for deeplabv3plus and 32 for fpn and unet."""
    decoder: Options = field(default_factory=dict)
    """Options of the decoder, such as channels=128 norm=group."""

    imports: Modules = ()
    """Python modules to import first, such as a module with your own decoder or loss. Importing runs their code."""

    crop: Annotated[int, arg(metavar="PIXELS")] = 512
    """Height and width of the training crops."""
    augment: Annotated[str, arg(metavar="NAME")] = "standard"
    """Augmentation: none, flip, light, standard. seed1, seed1-fpn and seed2 also shrink the image before the crop."""
    decode_at_least: Annotated[int, arg(metavar="PIXELS")] = 0
    """Decode training images at 1/2, 1/4 or 1/8 size if both sides stay at least this long. 0: full size."""
    full_size: bool = False
    """Validate, and later predict, at full size, even if --augment or --decode-at-least shrinks training images."""
    epochs: Annotated[int, arg(metavar="N")] = 40
    """Number of passes over the training images."""
    batch_size: Annotated[int, arg(metavar="N")] = 16
    """Images per batch. Under torchrun, per batch of all processes together."""
    rare_threshold: Annotated[float, arg(metavar="SHARE")] = 0.0
    """Repeat images of classes that occur in less than this share of the images, such as 0.1. 0: no repeats."""
    rare_crops: Annotated[float, arg(metavar="SHARE")] = 0.0
    """Share of the crops that is centred on a rare class (one with few pixels), 0 to 1."""
    mix: Literal["none", "cutmix", "copy-paste"] = "none"
    """Paste into half of the crops: a rectangle (cutmix) or the rare objects (copy-paste) of another crop."""

    optimizer: Annotated[str, arg(metavar="NAME")] = "adamw"
    """Any timm optimizer."""
    lr: Annotated[float, arg(metavar="LR")] = 3e-4
    """Highest learning rate. It rises over --warmup-epochs, then follows --schedule."""
    backbone_lr_factor: Annotated[float, arg(metavar="FACTOR")] = 1.0
    """Learning rate of the backbone, as a multiple of --lr."""
    layer_decay: Annotated[float | None, arg(metavar="FACTOR")] = None
    """Factor of the learning rate from each group of backbone layers to the one before, such as 0.9. By default 1."""
    weight_decay: Annotated[float, arg(metavar="DECAY")] = 0.01
    """Weight decay, 0 or more. Norms and biases have none unless --decay-norms."""
    decay_norms: bool = False
    """Apply weight decay to norms and biases too."""
    warmup_epochs: Annotated[float, arg(metavar="EPOCHS")] = 1.0
    """Epochs in which the learning rate rises to --lr, 0 or more."""
    warmup_factor: Annotated[float, arg(metavar="FACTOR")] = 0.01
    """Learning rate of the first step, as a share of --lr, 0 to 1."""
    schedule: Literal["cosine", "poly", "tanh", "multistep", "plateau", "constant"] = "cosine"
    """How the learning rate falls. plateau: by --plateau-factor after --patience validations without progress."""
    milestones: Annotated[tuple[float, ...], arg(metavar="EPOCH ...")] = ()
    """Epochs at which multistep multiplies the learning rate by --plateau-factor."""
    min_lr: Annotated[float, arg(metavar="LR")] = 0.0
    """Lowest learning rate of cosine, poly, tanh and plateau."""
    monitor: Literal["loss", "miou"] = "loss"
    """Validation score that plateau watches: the loss has to fall, the mIoU to rise."""
    patience: Annotated[int, arg(metavar="N")] = 2
    """Validations without progress that plateau accepts before it lowers the learning rate."""
    plateau_factor: Annotated[float, arg(metavar="FACTOR")] = 0.1
    """Factor by which plateau and multistep lower the learning rate, between 0 and 1."""
    clip_grad: Annotated[float, arg(metavar="NORM")] = 5.0
    """Largest norm of the gradient. 0: no clipping."""
    accumulate: Annotated[int, arg(metavar="N")] = 1
    """Batches per optimizer step: --batch-size 4 --accumulate 4 trains like --batch-size 16."""
    aux_weight: Annotated[float, arg(metavar="W")] = 0.0
    """Also train an auxiliary head that predicts the mask from earlier features, with its loss times W. 0: off."""
    image_weight: Annotated[float, arg(metavar="W")] = 0.0
    """Also train a head that predicts which classes a crop shows, with its loss times W. 0: off."""
    sam: Annotated[float, arg(metavar="RHO")] = 0.0
    """Radius of sharpness-aware minimisation, such as 0.05; a step then takes twice the time. 0: off."""
    freeze_backbone: Annotated[int, arg(metavar="EPOCHS")] = 0
    """Epochs at the start in which the backbone is frozen."""
    ema: Annotated[float, arg(metavar="DECAY")] = 0.0
    """Decay of an average of the weights, such as 0.999. The better of weights and average is kept. 0: no average."""
    val_window: Annotated[int | Literal["auto"], arg(metavar="PIXELS|auto")] = "auto"
    """Validate larger images in windows of this side. auto: 1024, above 16 megapixels or if memory runs out. 0: off."""
    val_every: Annotated[int, arg(metavar="EPOCHS")] = 1
    """Epochs from one validation to the next. The last epoch always validates."""
    early_stopping: Annotated[int, arg(metavar="EPOCHS")] = 0
    """Stop after this many epochs without a better mIoU. 0: never."""
    loss: Losses = field(default_factory=lambda: {"ce": 1.0})
    """Weighted sum of ce, bce, dice, jaccard, tversky, focal_tversky, generalized_dice, focal, lovasz, ohem, mcc."""
    loss_option: Options = field(default_factory=dict)
    """Options of the losses: dice.absent=zero for dice, absent=zero for all that have it. See segkit.losses."""
    label_smoothing: Annotated[float, arg(metavar="SHARE")] = 0.0
    """Share of the target that ce and bce spread evenly over all classes, 0 to 1."""
    class_weights: Literal["none", "inverse", "sqrt", "effective"] = "none"
    """Weight classes in cross-entropy losses by their number of pixels (effective: of images)."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision. auto: on for CUDA (bf16 if the GPU is fast at it, else fp16), off elsewhere."""
    compile: bool = False
    """Compile the training step: takes minutes, pays in long runs, needs a C++ compiler."""
    sync_bn: Literal["auto", "on", "off"] = "auto"
    """Synchronise batch norms over the processes of torchrun. auto: on for CUDA, the only device that can."""
    nan_policy: Literal["stop", "restart"] = "stop"
    """If more than two steps (in long epochs 1 %) of an epoch are not finite: stop, or restart once at half --lr."""
    deterministic: bool = False
    """Use repeatable algorithms on CUDA if torch has them; slower. Runs on a CPU are always repeatable."""

    out: Folder = None
    """Run folder. By default a new folder in runs/."""
    resume: ResumeWords = False
    """Resume a run with its settings: a run folder, a checkpoint, or --out. auto: resume --out if it has a run."""
    allow_data_change: bool = False
    """Resume although the data has changed since the run started."""
    save_every: Annotated[int, arg(metavar="STEPS")] = 0
    """Also save a checkpoint every so many steps within an epoch. 0: only after each epoch."""
    log: Annotated[tuple[Literal["tensorboard", "wandb"], ...], arg(metavar="tensorboard|wandb ...")] = ()
    """Loggers in addition to results.csv; their packages must be installed. A logger that fails is switched off."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1 or mps. auto: the GPU if there is one."""
    workers: Annotated[int | None, arg(metavar="N")] = None
    """Processes that load images. 0: none. By default one per core, at most 8. OMP_NUM_THREADS sets torch's threads."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the initial weights, the order of the images and the augmentation."""

    def __post_init__(self) -> None:
        check_finite(self)
        for name in ("crop", "epochs", "batch_size", "accumulate", "val_every"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        check(self, "lr", self.lr > 0, "positive")
        check(self, "min_lr", 0 <= self.min_lr <= self.lr, f"between 0 and `lr` ({self.lr})")
        check(self, "plateau_factor", 0 < self.plateau_factor < 1, "between 0 and 1")
        check(self, "val_fraction", 0 < self.val_fraction < 1, "between 0 and 1")
        for name in ("label_smoothing", "rare_threshold", "rare_crops", "max_bad", "warmup_factor"):
            check(self, name, 0 <= getattr(self, name) <= 1, "in 0..1")
        check(self, "ema", 0 <= self.ema < 1, "at least 0 and less than 1")
        check(self, "layer_decay", self.layer_decay is None or 0 < self.layer_decay <= 1, "more than 0 and at most 1")
        for name in (
            "weight_decay",
            "aux_weight",
            "image_weight",
            "sam",
            "warmup_epochs",
            "patience",
            "clip_grad",
            "seed",
            "save_every",
            "freeze_backbone",
            "early_stopping",
            "backbone_lr_factor",
            "decode_at_least",
        ):
            check(self, name, getattr(self, name) >= 0, "0 or more")
        check(self, "val_window", self.val_window == "auto" or self.val_window >= 0, "0 or more, or auto")
        check(self, "seed", self.seed < 2**63, "less than 2^63")
        check(self, "milestones", all(epoch > 0 for epoch in self.milestones), "positive")
        check_workers(self)
        for name in self.decoder.keys() & NOT_OF_DECODER.keys():
            raise UsageError(f"`decoder` has no option {name}; it is set by {NOT_OF_DECODER[name]}")
        for name in self.loss_option:
            loss, dot, option = name.rpartition(".")
            if dot and loss not in self.loss:
                raise UsageError(
                    f"`loss_option` has {name}, but the loss is {' + '.join(self.loss)}; give `loss_option` without it"
                )
            if option in NOT_OF_LOSS:
                raise UsageError(f"`loss_option` does not take {option}; it is {NOT_OF_LOSS[option]}")
        if (self.schedule == "multistep") != bool(self.milestones):
            raise UsageError('`schedule="multistep"` and `milestones` belong together, such as epochs 20 and 30')
        self._check_folds()
        if self.resume == "auto" and self.out is None:
            raise UsageError('`resume="auto"` needs `out`, the folder of the run to start or resume')
        if self.resume is True and self.out is None:
            raise UsageError("`resume` needs `out`, or the run to resume, such as runs/x")
        if isinstance(self.resume, Path) and self.out not in (None, self.resume, self.resume.parent):
            raise UsageError("`resume` continues in the folder of the run that it names; drop `out`")

    def _check_folds(self) -> None:
        if self.group_by is not None:
            is_known = self.group_by == NO_GROUPS or self.group_by.startswith(REGEX)
            check(self, "group_by", is_known, "regex:PATTERN, such as regex:vid_[0-9]+, or none")
            if self.val or not self.data:
                raise UsageError("`group_by` needs `data` without `val`, because it says how `data` is divided")
        if self.train_only and not self.data:
            raise UsageError("`train_only` needs `data`, whose images it adds to")
        if self.folds is None and self.fold is None:
            return
        if self.folds is None or self.fold is None:
            raise UsageError("`folds` and `fold` belong together: 5 and 0 validate on the first of five folds")
        if self.val:
            raise UsageError("`folds` takes the validation images from `data`; drop `val`, or `folds` and `fold`")
        if not self.data:
            raise UsageError("`folds` needs `data`, the images to divide")
        check(self, "folds", self.folds >= 2, "at least 2")
        in_range = self.fold == "all" or 0 <= self.fold < self.folds
        check(self, "fold", in_range, f"in 0..{self.folds - 1}, or all")


def implied_settings(
    given: Mapping[str, Any], architecture_of: Callable[[Path], Mapping[str, Setting]]
) -> dict[str, Setting]:
    """Return the settings that others imply: the run to resume, the model of `init_from`, or the demo.

    Settings from the user, recipes and files win over them.

    Args:
        given: Settings by name; absent ones are the default.
        architecture_of: Returns the settings that build the architecture of a model file or a loaded model.
    """
    run = run_to_resume(given.get("resume", False), given.get("out"))
    if run is not None:
        found = read_settings(TrainConfig, run.args) if run.args.is_file() else {}
        return {name: setting for name, setting in found.items() if name not in ("out", "resume")}
    is_demo = not given.get("data") and not given.get("recipe")
    demo = read_recipe(TrainConfig, "demo", "no data given") if is_demo else {}
    init_from = given.get("init_from")
    if isinstance(init_from, str | Path):
        init_from = Path(with_home(init_from))
    return {**demo, **(architecture_of(init_from) if init_from is not None else {})}
