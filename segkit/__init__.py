"""segkit: semantic segmentation in PyTorch, from photographs to masks.

The names below are imported on first use, so `import segkit` costs neither torch nor timm.
"""

from segkit._lazy import lazy_names
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
    "train": "segkit.workflows.train",
    "check": "segkit.workflows.check",
    "convert": "segkit.workflows.convert",
    "make_folds": "segkit.workflows.folds",
    "predict": "segkit.workflows.infer",
    "evaluate": "segkit.workflows.evaluate",
    "tune": "segkit.workflows.tune",
    "export": "segkit.workflows.export",
}
_MODULES = (
    "checks",
    "crf",
    "data",
    "demo",
    "folds",
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
__getattr__, __dir__ = lazy_names(__name__, _PUBLIC | {name: f"segkit.{name}" for name in _MODULES})
