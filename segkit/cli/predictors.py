"""A Predictor as the settings of a command say."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from segkit.config import PredictConfig
from segkit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from segkit.crf import DenseCRF
    from segkit.inference import Predictor
    from segkit.tta import TTA

Config = TypeVar("Config", bound=PredictConfig)


def with_members(config: Config) -> Config:
    """The settings with --weights for each model: by default the newest run; the folds of a run share its weight."""
    from segkit.models import find_folds
    from segkit.runs import newest_run

    found = [find_folds(path) for path in config.weights or (newest_run(),)]
    shares = config.member_weights and [
        weight / len(folds) for folds, weight in zip(found, config.member_weights, strict=True) for _ in folds
    ]
    return replace(config, weights=tuple(path for folds in found for path in folds), member_weights=tuple(shares))


def load_predictor(config: PredictConfig, *, device: "torch.device", crf_workers: int, probs: str) -> "Predictor":
    """Loads the models and joins them with test-time augmentation, window and CRF; prints what that comes to."""
    import torch

    from segkit.inference import Predictor
    from segkit.models import load_model, optimize
    from segkit.sliding_window import SlidingWindow

    dtype = torch.bfloat16 if config.amp == "bf16" else torch.float32
    tta, crf = build_tta(config), build_crf(config.crf, crf_workers)
    predictor = Predictor(
        [optimize(load_model(path).to(device), dtype=dtype, compile=config.compile) for path in config.weights],
        member_weights=config.member_weights or None,
        tta=tta,
        window=SlidingWindow(config.window, overlap=config.window_overlap) if config.window else None,
        class_bias=config.class_bias,
        crf=crf,
        device=device,
        probs=probs,
    )
    for path, weight in zip(config.weights, predictor.member_weights, strict=True):
        print(f"model  {path}" + (f", weight {weight:.3f}" if len(config.weights) > 1 else ""))
    print(f"views  {tta}" + (f"; windows of {config.window} pixels" if config.window else ""))
    if config.class_bias:
        print("bias   " + ", ".join(f"{name} {value:+g}" for name, value in config.class_bias.items()))
    if crf is not None:
        print(f"crf    {crf}")
    return predictor


def build_tta(config: PredictConfig) -> "TTA":
    """The preset, or what the single settings say."""
    from segkit.tta import TTA

    if config.tta is not None:
        return TTA.preset(config.tta)
    return TTA(scales=config.scales, flips=config.flips, brightness=config.brightness, merge=config.merge)


def build_crf(words: Sequence[str] | None, workers: int = 0) -> "DenseCRF | None":
    """A CRF from a preset's name and NAME=VALUE words; None stands for none."""
    from segkit.crf import DenseCRF
    from segkit.crf.presets import CRFParameters

    if words is None:
        return None
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UsageError(f"--crf takes one preset, got {' and '.join(names)}")
    options = dict(word.split("=", 1) for word in words if "=" in word)
    types = {name: type(value) for name, value in vars(CRFParameters()).items()} | {"tolerance": float}
    for name, value in options.items():
        if name not in types:
            raise UsageError(f"--crf has no parameter {name!r}, it has {', '.join(types)}")
        try:
            options[name] = types[name](value)
        except ValueError:
            raise UsageError(f"--crf {name}={value}: expected a number") from None
    return DenseCRF.preset(*(names or ["seed"]), workers=workers, **options)
