"""segkit: semantic segmentation in PyTorch, from photographs to masks.

The names below are imported on first use, so `import segkit` costs neither torch nor timm.
"""

from importlib import import_module
from typing import Any

from segkit._version import __version__

_PUBLIC = {
    "create_model": "segkit.models",
    "load_model": "segkit.models",
    "create_loss": "segkit.losses",
    "ConfusionMatrix": "segkit.metrics",
    "TTA": "segkit.tta",
    "SlidingWindow": "segkit.sliding_window",
    "DenseCRF": "segkit.crf",
    "Predictor": "segkit.inference",
    "predict": "segkit.workflows.infer",
    "evaluate": "segkit.workflows.evaluate",
    "tune": "segkit.workflows.tune",
    "export": "segkit.workflows.export",
}
_MODULES = (
    "crf",
    "data",
    "inference",
    "losses",
    "metrics",
    "models",
    "report",
    "sliding_window",
    "testing",
    "training",
    "tta",
    "visualize",
)

__all__ = ["__version__", *_PUBLIC, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return import_module(f"segkit.{name}")
    raise AttributeError(f"module 'segkit' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
