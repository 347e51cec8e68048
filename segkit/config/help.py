"""How --help shows the settings: in groups, with the most important options first and an example at the end.

Groups exist only here. The settings objects and args.yaml are flat.
"""

import ast
import dataclasses
import inspect
import sys
from itertools import pairwise
from typing import NamedTuple

from segkit.config.predict import CHOSEN_BY_TUNE, EvaluateConfig, InferConfig, TuneConfig
from segkit.config.tools import CheckConfig, ConvertConfig, ExportConfig, FoldsConfig
from segkit.config.train import TrainConfig


class Page(NamedTuple):
    """The help page of a command.

    Attributes:
        first: Options to show first, in this order.
        example: Commands to show at the end.
        hidden: Options not to show.
    """

    first: tuple[str, ...]
    example: str
    hidden: tuple[str, ...] = ()


PAGES: dict[type, Page] = {
    TrainConfig: Page(
        first=(
            *("data", "images", "val", "recipe", "model", "backbone"),
            *("epochs", "batch_size", "crop", "lr", "out", "resume"),
        ),
        example="python train.py --data train.json --images photos/ --recipe fast --out runs/a\n"
        "python train.py --resume runs/a --epochs 80",
    ),
    InferConfig: Page(
        first=("weights", "source", "out", "save", "tta", "crf", "window", "device"),
        example="python infer.py --weights runs/a --source photos/ --out masks",
    ),
    EvaluateConfig: Page(
        first=("data", "images", "weights", "compare", "tta", "crf", "out", "device"),
        example="python -m segkit evaluate --data val.json --images photos/ --weights runs/a",
    ),
    TuneConfig: Page(
        first=("data", "images", "weights", "flips", "scales", "crf", "out", "device"),
        example="python -m segkit tune --data val.json --images photos/ --weights runs/a runs/b",
        hidden=CHOSEN_BY_TUNE,
    ),
    CheckConfig: Page(
        first=("data", "images", "masks", "full", "out"),
        example="python -m segkit check train.json val.json --images photos/ --full",
    ),
    ConvertConfig: Page(
        first=("data", "to", "out", "image_files", "images", "masks", "format"),
        example="python -m segkit convert train.json --images photos/ --to yolo --out yolo\n"
        "python -m segkit convert masks/ --images photos/ --to labelme --out to_correct",
    ),
    FoldsConfig: Page(
        first=("data", "out", "k", "images", "group_by", "near_duplicates", "train_only", "seed", "overwrite"),
        example="python -m segkit folds all.json --out folds --k 5",
    ),
    ExportConfig: Page(
        first=(
            *("model", "onnx", "int8", "calibrate", "check", "images", "masks", "max_loss", "accept_loss"),
            *("photographs", "seed", "imports", "overwrite"),
        ),
        example="python -m segkit export runs/a --onnx model.onnx\n"
        "python -m segkit export runs/a --int8 --calibrate train.json --check val.json",
    ),
}
# An option is in the same group on the page of every command that has it.
GROUPS: dict[str, tuple[str, ...]] = {
    "data": (
        *("val", "val_fraction", "split", "folds", "fold", "group_by", "train_only", "format", "images", "masks"),
        *("class_names", "palette", "mask_name", "class_map", "ignore_classes", "on_bad", "max_bad"),
    ),
    "model": (
        "weights",
        "member_weights",
        "pretrained",
        "init_from",
        "output_stride",
        "decoder",
        "imports",
        "mean",
        "std",
    ),
    "training": (
        *("loss", "loss_option", "class_weights", "label_smoothing", "augment", "mix", "rare_threshold", "rare_crops"),
        *("optimizer", "weight_decay", "schedule", "warmup_epochs", "min_lr", "milestones", "patience"),
        *("plateau_factor", "monitor", "clip_grad", "accumulate", "ema", "freeze_backbone", "val_every"),
        "val_window",
        "early_stopping",
    ),
    "prediction": (
        *(
            "tta",
            "flips",
            "scales",
            "full_size",
            "brightness",
            "merge",
            "resize",
            "window",
            "window_overlap",
            "class_bias",
        ),
        "margin",
    ),
    "speed": ("device", "batch_size", "workers", "amp", "compile", "engine", "decode_at_least", "mask_cache", "pixels"),
    "output": (
        *("save_every", "log", "worst", "skip_existing", "submission_sample", "submission_size"),
        *("pseudo_threshold", "pseudo_class_thresholds", "pseudo_min_share"),
    ),
    "advanced": (
        *("exif", "max_pixels", "overlap", "crowd", "rescale_annotations", "merge_same_name", "bbox_as_mask"),
        *("allow_outside_root", "backbone_lr_factor", "layer_decay", "decay_norms", "warmup_factor", "sam"),
        *("aux_weight", "image_weight"),
        *("sync_bn", "nan_policy", "deterministic", "allow_data_change", "seed", "config", "print_config"),
    ),
}


def in_groups(names: set[str], first: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the groups of these options, without the `first` ones and without empty groups."""
    groups = {group: tuple(n for n in known if n in names and n not in first) for group, known in GROUPS.items()}
    return {group: members for group, members in groups.items() if members}


def help_texts(cls: type) -> dict[str, str]:
    """Return the help of each setting: the docstring below its field, in the source of the class or its bases."""
    texts: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        module = ast.parse(inspect.getsource(sys.modules[base.__module__]))
        (body,) = [node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == base.__name__]
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[field.target.id] = inspect.cleandoc(text.value.value)
    return texts
