"""Segmentation models: hand-written decoders on timm backbones.

The names below are imported on first use: a model needs neither the exporters nor the readers of other formats.
"""

from segkit._lazy import lazy_names

_PUBLIC = {
    "DECODERS": "segkit.models.factory",
    "FPN": "segkit.models.fpn",
    "Backbone": "segkit.models.backbone",
    "DeepLabV3Plus": "segkit.models.deeplabv3plus",
    "OnnxModel": "segkit.models.onnx_model",
    "Preprocessing": "segkit.models.preprocessing",
    "SegmentationHead": "segkit.models.segmenter",
    "Segmenter": "segkit.models.segmenter",
    "TrainingScale": "segkit.training_scale",  # in another module, because the data needs it too
    "UNet": "segkit.models.unet",
    "create_model": "segkit.models.factory",
    "export_onnx": "segkit.models.export",
    "export_program": "segkit.models.export",
    "find_folds": "segkit.runs",  # has moved to another module; it stays public here
    "find_model_file": "segkit.models.model_file",
    "import_modules": "segkit.models.factory",
    "load_model": "segkit.models.model_file",
    "load_smp_checkpoint": "segkit.models.smp.checkpoints",
    "optimize": "segkit.models.optimized",
    "quantize_onnx": "segkit.models.quantize",
    "read_header": "segkit.models.model_file",
    "save_model": "segkit.models.model_file",
    "transfer_weights": "segkit.models.transfer",
}

__all__ = [*_PUBLIC]
__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
