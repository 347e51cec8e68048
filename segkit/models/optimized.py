"""optimize: the fast path for inference in one call."""

import copy
import warnings

import torch
from torch import Tensor, nn

from segkit.compat import compiled_for_inference, has_cpp_compiler
from segkit.errors import UsageError
from segkit.models.folding import fold_fpn, fold_norms
from segkit.models.preprocessing import Preprocessing
from segkit.models.segmenter import Segmenter


class OptimizedSegmenter(nn.Module):
    """What `optimize` gives: takes and gives what the model does, in inference mode.

    Attributes:
        class_names: As in the model.
        preprocessing: As in the model.
        compiled: Whether a compiler was there.
    """

    def __init__(self, model: Segmenter, *, dtype: torch.dtype, compiled: bool, dynamic: bool) -> None:
        super().__init__()
        self.class_names: tuple[str, ...] = model.class_names
        self.preprocessing: Preprocessing = model.preprocessing
        self.dtype = dtype
        self.compiled = compiled
        self.model = model
        self.run = torch.compile(model, dynamic=None if dynamic else False) if compiled else model

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, num_classes, H, W) float32."""
        images = images.to(dtype=self.dtype, memory_format=torch.channels_last)
        if not self.compiled:
            return self.run(images).float()
        with compiled_for_inference():
            return self.run(images).float()

    def train(self, mode: bool = True) -> "OptimizedSegmenter":
        if mode:
            raise UsageError("an optimized model only infers; train the model that it was made from")
        return super().train(mode)


def optimize(
    model: Segmenter, *, dtype: torch.dtype = torch.float32, compile: bool = True, dynamic: bool = False
) -> OptimizedSegmenter:
    """Makes a copy of the model that infers faster: channels last, norms folded into convolutions, compiled.

    The first call at an image size and batch compiles, which takes tens of seconds. In float32 the logits
    change by rounding only.

    Args:
        model: A trained model; it stays as it is.
        dtype: torch.float32, or torch.bfloat16 where the processor computes in it (logits then change in
            the third digit).
        compile: False leaves out the compiler.
        dynamic: Compiles the second size for sizes of any kind, which takes many minutes; by default each size, of
            the first 256, is compiled by itself.

    Returns:
        A module that stands for the model wherever it infers: in `Predictor`, in `TTA`.
    """
    compiled = compile and (_on_gpu(model) or has_cpp_compiler())
    if compile and not compiled:
        warnings.warn("optimize: there is no C++ compiler, so the model is not compiled", stacklevel=2)
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(fast)
    if not compiled:  # compiled, the plain FPN is the faster one: fewer but larger convolutions
        fold_fpn(fast)
    fast = fast.to(dtype=dtype, memory_format=torch.channels_last)
    return OptimizedSegmenter(fast, dtype=dtype, compiled=compiled, dynamic=dynamic).eval()


def _on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda
