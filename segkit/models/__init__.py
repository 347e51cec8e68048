"""Segmentation models: hand-written decoders on timm backbones."""

from segkit.models.backbone import Backbone
from segkit.models.deeplabv3plus import DeepLabV3Plus
from segkit.models.export import export_onnx, export_program
from segkit.models.factory import DECODERS, create_model
from segkit.models.fpn import FPN
from segkit.models.model_file import find_folds, find_model_file, load_model, read_header, save_model
from segkit.models.optimized import optimize
from segkit.models.preprocessing import Preprocessing
from segkit.models.segmenter import SegmentationHead, Segmenter
from segkit.models.smp_checkpoints import load_smp_checkpoint
from segkit.models.transfer import transfer_weights
from segkit.models.unet import UNet

__all__ = [
    "DECODERS",
    "FPN",
    "Backbone",
    "DeepLabV3Plus",
    "Preprocessing",
    "SegmentationHead",
    "Segmenter",
    "UNet",
    "create_model",
    "export_onnx",
    "export_program",
    "find_folds",
    "find_model_file",
    "load_model",
    "load_smp_checkpoint",
    "optimize",
    "read_header",
    "save_model",
    "transfer_weights",
]
