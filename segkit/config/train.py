"""The settings of train.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from segkit.config.checks import check, check_finite, check_workers, expand_user
from segkit.config.sources import LabelConfig
from segkit.config.words import Folder, Folders, Losses, Options, ResumeWords, Sources
from segkit.errors import UsageError


@dataclass(frozen=True)
class TrainConfig(LabelConfig):
    """Train a segmentation model on photographs with COCO annotations. Without --data, on a drawn demo set."""

    data: Sources = ()
    """COCO JSON files to train on; or folders of images, with --masks."""
    val: Sources = ()
    """COCO JSON files or folders to validate on; without them a share of --data is split off."""
    folds: Annotated[int | None, arg(metavar="K")] = None
    """Divide --data into K folds with even shares of every class, see `python -m segkit folds`; needs --fold."""
    fold: Annotated[int | Literal["all"] | None, arg(metavar="I|all")] = None
    """The fold to validate on, 0 to K - 1, the others train; or all, for K trainings one after another."""
    train_only: Sources = ()
    """COCO JSON files or folders, such as pseudo labels, whose images never validate."""
    masks: Folders = ()
    """Folders of masks (index PNGs, or in colours with --palette), one for each of --data, --val, --train-only."""
    on_bad: Literal["error", "skip"] = "error"
    """skip leaves out training images that cannot be used; validation images must all be good."""
    max_bad: float = 0.01
    """Largest share of the training images that --on-bad skip leaves out; one always may be."""
    val_fraction: float = 0.2
    """Share of the images that is split off where --val is not given."""

    recipe: Annotated[str | None, arg(metavar="NAME")] = None
    """Settings that go together; --config and the command line win. `--recipe help` lists the names."""
    model: str = "fpn"
    """Architecture: deeplabv3plus, fpn or unet."""
    backbone: str = "tf_efficientnet_b3"
    """Any backbone of timm with a feature pyramid, with a tag where wanted (tf_efficientnet_b4.ns_jft_in1k)."""
    pretrained: Annotated[str, arg(metavar="true|false|FILE")] = "true"
    """Backbone weights: true asks timm's hub, false draws random ones, or a safetensors file."""
    init_from: Annotated[Path | None, arg(metavar="RUN|FILE")] = None
    """Start from the architecture and the weights of a model of segkit; in its head, from classes of the same name."""
    output_stride: Literal[8, 16, 32] | None = None
    """Stride of the deepest features. By default 16 for deeplabv3plus, 32 for the others."""
    decoder: Options = field(default_factory=dict)
    """Options of the decoder (channels=128 norm=group)."""

    crop: int = 512
    """Height and width of the training crops, in pixels."""
    augment: str = "standard"
    """How crops of the full-size image vary: none, flip, light or standard; seed1, seed1-fpn, seed2 shrink it first."""
    decode_at_least: int = 0
    """Decode training images at a half, a quarter or an eighth, as far as both sides stay at least this; 0: whole."""
    epochs: int = 40
    """Passes over the training images."""
    batch_size: int = 16
    """Images in a batch; under torchrun, those of all processes together."""
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
    decay_norms: bool = False
    """Apply it to norms and biases too."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises to --lr."""
    warmup_factor: float = 0.01
    """Where the rise begins, as a share of --lr."""
    schedule: Literal["cosine", "poly", "tanh", "multistep", "plateau", "constant"] = "cosine"
    """Course of the learning rate; plateau: lower by --plateau-factor after --patience validations without progress."""
    milestones: Annotated[tuple[float, ...], arg(metavar="EPOCH ...")] = ()
    """Epochs at which multistep lowers the learning rate by --plateau-factor."""
    min_lr: float = 0.0
    """Lowest learning rate of cosine, poly, tanh and plateau."""
    monitor: Literal["loss", "miou"] = "loss"
    """What plateau looks at, on the validation images: the loss, which is to fall, or the mIoU, which is to rise."""
    patience: Annotated[int, arg(metavar="N")] = 2
    """Validations without progress that plateau bears; the next one lowers the learning rate."""
    plateau_factor: float = 0.1
    """What plateau and multistep multiply the learning rate by."""
    clip_grad: float = 5.0
    """Largest norm of the gradient; 0 switches clipping off."""
    accumulate: Annotated[int, arg(metavar="N")] = 1
    """Batches whose gradients make one step: --batch-size 4 --accumulate 4 learns as from batches of 16."""
    sam: Annotated[float, arg(metavar="RHO")] = 0.0
    """Sharpness-aware minimisation: take the gradient this far from the weights (0.05), in twice the time. 0: off."""
    freeze_backbone: Annotated[int, arg(metavar="EPOCHS")] = 0
    """Epochs at the start in which the backbone does not learn."""
    ema: Annotated[float, arg(metavar="DECAY")] = 0.0
    """Average the weights over the steps, with this decay (0.99, 0.999); both are scored, the better kept. 0: off."""
    val_every: Annotated[int, arg(metavar="EPOCHS")] = 1
    """Epochs from one validation to the next; the last epoch always has one."""
    early_stopping: Annotated[int, arg(metavar="EPOCHS")] = 0
    """Stop after so many epochs without a better mIoU; 0: never."""
    loss: Losses = field(default_factory=lambda: {"ce": 1.0})
    """Losses and their weights (ce=0.6 dice=0.4): ce, bce, dice, jaccard, tversky, focal, lovasz, ohem and more."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes, in ce and bce."""
    class_weights: Literal["none", "inverse", "sqrt", "effective"] = "none"
    """Weights of the classes in ce and its kin, by how many pixels (effective: images) they have."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision. auto: on for CUDA (bf16 where it is fast), off elsewhere."""
    compile: bool = False
    """Compile the training step, which takes minutes and pays in long runs; needs a C++ compiler."""
    sync_bn: Literal["auto", "on", "off"] = "auto"
    """Under torchrun, batch norms over the batches of all processes. auto: on for CUDA, which alone can do so."""
    nan_policy: Literal["stop", "restart"] = "stop"
    """When more than two steps of an epoch (of a long one: 1 %) are not finite: stop; or restart once, at half --lr."""
    deterministic: bool = False
    """The same results on every run on CUDA too, where torch can; slower. On a CPU they are so anyway."""

    out: Folder = None
    """Run folder. By default a new one below runs/."""
    resume: ResumeWords = False
    """Go on where a run stopped, with its settings: a run folder, a checkpoint, or --out. auto: --out, if it began."""
    allow_data_change: bool = False
    """Resume though the data is not what the run began with."""
    save_every: Annotated[int, arg(metavar="STEPS")] = 0
    """Steps after which the state is saved within an epoch; 0: after each epoch only."""
    log: Annotated[tuple[Literal["tensorboard", "wandb"], ...], arg(metavar="tensorboard|wandb ...")] = ()
    """Loggers beside results.csv, each with a package of its own to install; one that fails is left out."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    workers: int | None = None
    """Loader processes. By default one for each core, at most eight."""
    seed: int = 0
    """Seed of weights, order and augmentation."""

    def __post_init__(self) -> None:
        expand_user(self, "pretrained", "mask_cache")
        check_finite(self)
        for name in ("crop", "epochs", "batch_size", "accumulate", "val_every"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        check(self, "lr", self.lr > 0, "positive")
        check(self, "min_lr", 0 <= self.min_lr <= self.lr, f"in 0..{self.lr}, the --lr")
        check(self, "plateau_factor", 0 < self.plateau_factor < 1, "between 0 and 1")
        check(self, "val_fraction", 0 < self.val_fraction < 1, "between 0 and 1")
        for name in ("label_smoothing", "rare_threshold", "rare_crops", "max_bad", "warmup_factor"):
            check(self, name, 0 <= getattr(self, name) <= 1, "in 0..1")
        check(self, "ema", 0 <= self.ema < 1, "at least 0 and less than 1")
        check(self, "layer_decay", self.layer_decay is None or 0 < self.layer_decay <= 1, "in 0..1, and not 0")
        for name in (
            "weight_decay",
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
        check(self, "seed", self.seed < 2**63, "less than 2^63")
        check(self, "milestones", all(epoch > 0 for epoch in self.milestones), "positive")
        check_workers(self)
        if (self.schedule == "multistep") != bool(self.milestones):
            raise UsageError(
                "--schedule multistep and --milestones belong together: --schedule multistep --milestones 20 30"
            )
        _check_folds(self)
        if self.resume == "auto" and self.out is None:
            raise UsageError("--resume auto needs --out, the folder of the run to begin or to go on with")
        if self.resume is True and self.out is None:
            raise UsageError("--resume needs --out, the folder of the run to go on with, or its name: --resume runs/x")
        if isinstance(self.resume, Path) and self.out not in (None, self.resume, self.resume.parent):
            raise UsageError("--resume RUN goes on in the run's own folder; leave out --out")


def _check_folds(config: TrainConfig) -> None:
    if config.train_only and not config.data:
        raise UsageError("--train-only needs --data, whose images it adds to")
    if config.folds is None and config.fold is None:
        return
    if config.folds is None or config.fold is None:
        raise UsageError("--folds and --fold belong together: --folds 5 --fold 0 validates on the first of five folds")
    if config.val:
        raise UsageError("--folds takes the validation images from --data; leave out --val, or --folds and --fold")
    if not config.data:
        raise UsageError("--folds needs --data, the images to divide")
    check(config, "folds", config.folds >= 2, "at least 2")
    in_range = config.fold == "all" or 0 <= config.fold < config.folds
    check(config, "fold", in_range, f"in 0..{config.folds - 1}, or all")
