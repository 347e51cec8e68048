"""optimize: make a model faster for inference."""

import copy
import warnings

import torch
from torch import Tensor, nn

from segkit.compat import compiled_for_inference, has_cpp_compiler
from segkit.errors import UsageError
from segkit.models.folding import fold_fpn, fold_norms
from segkit.models.onnx_model import OnnxModel
from segkit.models.preprocessing import Preprocessing
from segkit.models.segmenter import Segmenter
from segkit.sliding_window import SlidingWindow
from segkit.training_scale import TrainingScale


class OptimizedSegmenter(nn.Module):
    """A model that `optimize` made faster: same input and output, but only for inference.

    Attributes:
        class_names: Class names of the model.
        category_ids: Category ids of the model.
        preprocessing: Preprocessing of the model.
        training_scale: Training scale of the model.
        window: Window of the model's validation.
        compiled: Whether the model is compiled; false if there is no C++ compiler.
    """

    def __init__(self, model: Segmenter, *, dtype: torch.dtype, compiled: bool, dynamic: bool) -> None:
        super().__init__()
        self.class_names: tuple[str, ...] = model.class_names
        self.category_ids: dict[str, int | str] = model.category_ids
        self.preprocessing: Preprocessing = model.preprocessing
        self.training_scale: TrainingScale = model.training_scale
        self.window: SlidingWindow | None = model.window
        self.dtype = dtype
        self.compiled = compiled
        self.model = model
        self.run = torch.compile(model, dynamic=None if dynamic else False) if compiled else model

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes, H, W) float32 of normalised images (N, C, H, W)."""
        images = images.to(dtype=self.dtype, memory_format=torch.channels_last)
        if not self.compiled:
            return self.run(images).float()
        with compiled_for_inference():
            return self.run(images).float()

    def train(self, mode: bool = True) -> "OptimizedSegmenter":
        if mode:
            raise UsageError("an optimized model is only for inference; train the model that it was made from")
        return super().train(mode)


def optimize(
    model: Segmenter | OnnxModel,
    *,
    dtype: torch.dtype = torch.float32,
    compile: bool = True,
    dynamic: bool = False,
) -> OptimizedSegmenter | OnnxModel:
    """Return a copy of the model that is faster: channels last, norms folded into convolutions, compiled.

    The first call with an image size and a batch size compiles, which takes tens of seconds. In float32 the logits
    change only by rounding.

    Args:
        model: A trained model; it is not changed. An OnnxModel is returned as it is: onnxruntime has optimized it.
        dtype: torch.float32, or torch.bfloat16 if the processor computes in it (the logits then change in the third
            digit).
        compile: Whether to compile.
        dynamic: Compile the second size for all further sizes, which takes many minutes. By default each size is
            compiled separately, up to 256 of them.

    Returns:
        A module that replaces the model for inference, such as in `Predictor` and in `TTA`.

    Raises:
        UsageError: `model` is not a Segmenter, such as an optimized model; or `dtype` is set for an OnnxModel.
    """
    if isinstance(model, OnnxModel):
        if dtype != torch.float32:
            raise UsageError(f"{model.path} computes in the type that it was exported with; leave out `dtype`")
        return model
    if not isinstance(model, Segmenter):
        raise UsageError(f"optimize takes a Segmenter, got a {type(model).__name__}")
    compiled = compile and (next(model.parameters()).is_cuda or has_cpp_compiler())
    if compile and not compiled:
        warnings.warn("optimize: there is no C++ compiler, the model is not compiled", stacklevel=2)
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(fast)
    if not compiled:  # A compiled FPN is faster without folding: it has fewer but larger convolutions.
        fold_fpn(fast)
    fast = fast.to(dtype=dtype, memory_format=torch.channels_last)
    return OptimizedSegmenter(fast, dtype=dtype, compiled=compiled, dynamic=dynamic).eval()
