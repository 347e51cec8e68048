"""A test for each use of private interfaces of torch and timm; `data_parallel` has its tests with the processes."""

import gc
import shutil
import signal
import time
from multiprocessing import Process

import pytest
import torch
from timm.layers import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import nn
from torch.export import Dim
from torch.utils.data import DataLoader, Dataset

from segkit import compat
from segkit.errors import UsageError


@pytest.fixture
def loader():
    loader = DataLoader(range(4), num_workers=2, persistent_workers=True)
    yield loader
    compat.end_workers(loader)


def test_the_workers_of_a_loader_are_its_processes(loader):
    workers = compat.loader_workers(iter(loader))
    assert [worker.is_alive() for worker in workers] == [True, True]
    assert compat.loader_workers(iter(DataLoader(range(4)))) == []


def test_an_iterator_whose_workers_did_not_start_ends_silently(monkeypatch, capsys):
    def no_more(*ignored):
        raise BlockingIOError

    monkeypatch.setattr(Process, "start", no_more)
    with pytest.raises(BlockingIOError) as raised:
        iter(DataLoader(range(4), num_workers=1))
    compat.abandon_unfinished_iterator(raised.value)
    del raised
    gc.collect()
    assert capsys.readouterr().err == ""


def test_workers_that_were_ended_are_started_again_by_the_next_pass(loader):
    assert not compat.has_workers(loader)
    before = compat.loader_workers(iter(loader))
    assert compat.has_workers(loader)
    compat.end_workers(loader)
    assert not compat.has_workers(loader)
    assert not any(worker.is_alive() for worker in before)
    compat.end_workers(loader)  # there is nothing left to end
    assert [int(item) for item in loader] == [0, 1, 2, 3]
    after = compat.loader_workers(iter(loader))
    assert {worker.pid for worker in after}.isdisjoint(worker.pid for worker in before)


class Deaf(Dataset):
    """A data set on a disk that does not answer; its workers ignore SIGTERM."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)


def test_workers_that_do_not_end_are_killed():
    loader = DataLoader(Deaf(), num_workers=2, persistent_workers=True, timeout=0.2)
    with pytest.raises(RuntimeError, match="timed out"):
        next(iter(loader))
    workers = compat.loader_workers(loader._iterator)
    compat.end_workers(loader)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * 2


def test_tensors_of_several_dtypes_and_shapes_are_copied():
    sources = [torch.rand(3), torch.arange(4), torch.rand(2, 2), torch.tensor(True)]
    targets = [torch.zeros_like(source) for source in sources]
    compat.copy_all(targets, sources)
    assert all(torch.equal(target, source) for target, source in zip(targets, sources, strict=True))
    compat.copy_all([], [])


def test_the_version_of_a_tensor_rises_when_it_changes_except_by_a_batch_norm():
    norm = nn.BatchNorm2d(2)
    before = {name: compat.version(buffer) for name, buffer in norm.named_buffers()}
    norm(torch.rand(2, 2, 4, 4))
    assert compat.version(norm.num_batches_tracked) > before["num_batches_tracked"]
    assert compat.version(norm.running_mean) == before["running_mean"]  # so callers must treat batch norms separately


def count_compilations(sizes):
    """Return how often the compiler is called for one function at so many sizes."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    run = torch.compile(lambda x: x + 1, backend=backend, dynamic=False)
    for size in range(2, 2 + sizes):
        run(torch.zeros(size))
    return len(graphs)


def test_inference_is_compiled_with_frozen_weights_for_more_than_eight_sizes():
    assert not torch._inductor.config.freezing
    with compat.compiled_for_inference():
        assert torch._inductor.config.freezing
        assert count_compilations(20) == 20
    assert not torch._inductor.config.freezing
    with torch._dynamo.config.patch({compat._recompile_limit(): 8}):  # the default; some releases of timm raise it
        assert count_compilations(20) == 8


@pytest.mark.slow  # compiles
@pytest.mark.skipif(not compat.has_cpp_compiler(), reason="there is no C++ compiler")
def test_a_model_compiled_for_training_has_the_gradients_of_the_eager_one():
    torch.compiler.reset()
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU()), torch.rand(2, 3, 6, 6)
    weight = model[0].weight
    (eager,) = torch.autograd.grad(model(x).square().sum(), weight)
    (compiled,) = torch.autograd.grad(compat.compiled_for_training(model)(x).square().sum(), weight)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


def test_a_cpp_compiler_is_found_if_there_is_one():
    if shutil.which("g++"):
        assert compat.has_cpp_compiler()
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert not compat.has_cpp_compiler()


def test_a_program_that_is_traced_on_two_images_takes_one():
    conv = Conv2dSame(3, 4, 3, stride=2).eval()
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    if not hasattr(torch.fx.experimental._config, "backed_size_oblivious"):
        pytest.skip("torch 2.7 introduced backed_size_oblivious")
    with compat.free_sizes(), torch.no_grad():
        program = torch.export.export(conv, (torch.zeros(2, 3, 64, 96),), dynamic_shapes=(free,)).module()
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(program(images), conv(images))


@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (2, 1), (3, 1), (3, 2), (5, 1), (5, 3), (7, 1)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_same_padding_is_timms_if_the_stride_divides_the_size(kernel_size, stride, dilation):
    for size in (stride, 2 * stride, 12 * stride):
        expected = get_same_padding(size, kernel_size, stride, dilation)
        assert compat._same_padding_of_whole_strides(size, kernel_size, stride, dilation) == expected


def test_an_older_torch_is_told_which_one_exports(monkeypatch):
    class Older(nn.Module):
        pass

    monkeypatch.setattr(torch.fx.experimental, "_config", Older())
    message = r"needs torch 2.7, this is torch .*: pip install 'torch>=2.7'"
    with pytest.raises(UsageError, match=message), compat.free_sizes():
        pass
