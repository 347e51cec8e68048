"""What segkit uses of torch and timm beyond their public interface, so that a new release breaks one file.

`tests/test_compat.py` has a test for each function. A use that has a public equivalent in the oldest supported torch
does not belong here.
"""

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, _utils
from torch.utils.data.dataloader import _BaseDataLoaderIter

from segkit.errors import MissingPackageError

# --- torch.utils.data ------------------------------------------------------------------------------------------


def loader_workers(iterator: Any) -> list[BaseProcess]:
    """Return the worker processes of a DataLoader's iterator; an iterator without workers has none.

    Private, because a DataLoader does not say which processes it starts, and ours must be killed when a program ends.
    """
    return list(getattr(iterator, "_workers", ()))


def has_workers(loader: DataLoader) -> bool:
    """Return whether the persistent workers of `loader` have been started.

    Private, because torch keeps the iterator that owns them to itself.
    """
    return loader._iterator is not None


def end_workers(loader: DataLoader) -> None:
    """End the persistent workers of `loader`, within about two seconds; its next pass starts new ones.

    Private, because torch ends persistent workers only when the garbage collector finds their loader, and then waits
    ten seconds for each worker that does not end, for example because a disk does not answer.
    """
    iterator, loader._iterator = loader._iterator, None
    if iterator is None:
        return
    workers = loader_workers(iterator)
    with patch.object(_utils, "MP_STATUS_CHECK_INTERVAL", 1 / max(1, len(workers))):
        iterator._shutdown_workers()
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join(1)


def abandon_unfinished_iterator(error: BaseException) -> None:
    """Keep a DataLoader's iterator silent whose workers could not all start, see the traceback of `error`.

    Private, because torch's `__del__` fails on such an iterator, and prints a second traceback.
    """
    step = error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if isinstance(owner, _BaseDataLoaderIter):
            owner._shutdown = True
        step = step.tb_next


# --- torch.distributed -------------------------------------------------------------------------------------


def data_parallel(model: nn.Module, **options: Any) -> nn.parallel.DistributedDataParallel:
    """Return a DistributedDataParallel that copies buffers between processes once, now, and not before each forward.

    The argument for this is public, but only since torch 2.13. `broadcast_buffers=False`, the older one, would not
    copy buffers at the start either, so on older releases the attribute of that name is set afterwards.
    """
    if "forward_sync_buffers" in inspect.signature(nn.parallel.DistributedDataParallel).parameters:
        return nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False, **options)
    wrapped = nn.parallel.DistributedDataParallel(model, **options)
    wrapped.broadcast_buffers = False
    return wrapped


def leave_process_group(*, is_broken: bool = False) -> None:
    """Leave the process group that `torch.distributed.init_process_group` joined.

    In torch 2.7 and older, gloo can hang here: the group waits for its threads while it holds Python's lock, and a
    thread that still has to release the tensor of the last exchange waits for that lock. The pause lets the thread do
    so; sleeping releases the lock.

    Args:
        is_broken: Another process has ended. Leave without the pause, because torchrun is about to stop this process,
            which still has to report why it ends.
    """
    if not is_broken:
        time.sleep(0.1)
    torch.distributed.destroy_process_group()


# --- Tensors -----------------------------------------------------------------------------------------------


@torch.no_grad()
def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, with one kernel for all tensors of a dtype.

    Private, because torch has no public function for it; one kernel for each small tensor costs more than the copying.
    """
    for dtype in {target.dtype for target in targets}:
        pairs = [pair for pair in zip(targets, sources, strict=True) if pair[0].dtype == dtype]
        torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])


def version(tensor: Tensor) -> int:
    """Return a number that rises when the tensor is changed in place by an operation, except by a batch norm.

    Private, because torch counts the changes only for autograd.
    """
    return tensor._version


# --- The compiler ----------------------------------------------------------------------------------------------


# Whether `torch.export` traces the caller; before torch 2.7, which has no such function, whether any compiler does.
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


@contextmanager
def compiled_for_inference() -> Iterator[None]:
    """Compile what runs inside with frozen weights, and one model for each of up to 256 sizes.

    Frozen weights are constants: norms are folded, weights are reordered once, and activations are joined to
    convolutions. `torch.compile(options={"freezing": True})` takes effect too late for that. All models share the
    code of `Segmenter.forward`; by default torch compiles one function at most eight times, and runs it uncompiled
    after that.
    """
    with torch._inductor.config.patch(freezing=True), torch._dynamo.config.patch({_recompile_limit(): 256}):
        yield


def _recompile_limit() -> str:
    return "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"  # until 2.6


def compiled_for_training(model: nn.Module) -> nn.Module:
    """Return `model` with its forward and backward pass compiled.

    torch 2.7 fails to compile some backward passes, such as the one of an FPN with group norms, with a KeyError that
    names an operation ("op42"): it looks for a saved activation that a result may overwrite, and does not expect that
    an operation that reads this activation has been removed from the graph. Without such overwriting these passes
    compile. torch 2.6 does not have this fault, and torch 2.8 corrected it.
    """
    return torch.compile(model, options={"inplace_buffers": False} if torch.__version__.startswith("2.7.") else None)


def has_cpp_compiler() -> bool:
    """Return whether torch.compile finds a C++ compiler, which it needs on the CPU.

    This calls a private function of torch: which compilers torch tries is not public.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


# --- Export ----------------------------------------------------------------------------------------------------


@contextmanager
def free_sizes() -> Iterator[None]:
    """Keep conditions on the size of the images out of a program that `torch.export` traces inside.

    Without torch's `backed_size_oblivious`, a program traced on a batch of 2 refuses a batch, height or width of 1.
    timm computes the padding of TensorFlow's convolutions from the size of each map, layer after layer; `Segmenter`
    pads its images to whole strides, so that padding is a constant, and the trace takes seconds instead of minutes.

    Raises:
        MissingPackageError: Torch is older than 2.7.
    """
    # Loaders use this module as well, and need neither.
    import timm.layers.padding
    from torch.fx.experimental import _config as tracing

    if not hasattr(tracing, "backed_size_oblivious"):
        raise MissingPackageError(
            f"the export of a model needs torch 2.7, this is torch {torch.__version__}: pip install 'torch>=2.7'"
        )
    with (
        tracing.patch(backed_size_oblivious=True),
        patch.object(timm.layers.padding, "get_same_padding", _same_padding_of_whole_strides),
    ):
        yield


def _same_padding_of_whole_strides(size: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Return timm's `get_same_padding` for a size that the stride divides."""
    return max((kernel_size - 1) * dilation + 1 - stride, 0)
