"""Losses that work on blocks of pixels in several threads."""

import re
import signal
import threading
import time

import pytest
import torch
from helpers import tiny_training  # not `forked` by name: this file must not run before those that train in forks
from helpers.loss_examples import WEIGHTS, as_on, build, example, loss_and_gradient

from segkit.losses import create_loss
from segkit.losses._blocks import in_blocks

SIZE = (2, 130, 130)  # Of 3 classes: more values than torch leaves to one thread, in 17 blocks of each image.
EQUAL = [
    ("ce", {}),
    ("ce", {"label_smoothing": 0.1, "class_weights": WEIGHTS}),
    ("dice", {}),
    ("mcc", {}),
    ("bce", {}),
    ("focal", {}),
    ("ohem", {}),
]


@pytest.fixture(autouse=True)
def threads_are_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_many_blocks(name, **options):
    return as_on("cpu", build(name, **options), block_values=1)


def in_a_new_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def threads_of_work():
    """Return the threads in which blocks are worked on, and how many threads torch may use there."""
    x = torch.zeros(()).expand(8, 1, 1 << 13)  # Filling it takes one thread; after a fork torch hangs with more.

    def work(buffers, image, part):
        time.sleep(0.001)  # so that no thread takes all blocks
        return threading.current_thread().name, torch.get_num_threads()

    return set(in_blocks(work, 1 << 13, x))


@pytest.mark.parametrize(("name", "options"), EQUAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_does_not_change_one_bit(name, options, dtype):
    logits, target = example(size=SIZE)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(loss_and_gradient(in_many_blocks(name, **options), logits.to(dtype), target))
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", ["ce", "dice", "focal"])
@pytest.mark.parametrize("size", [(1, 90, 130), (1, 200, 180)], ids=["one-block", "few-blocks"])
def test_the_number_of_threads_does_not_change_a_small_image(name, size):
    logits, target = example(size=size)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(loss_and_gradient(build(name), logits.float(), target))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_the_threads_of_torch_stay_as_the_caller_has_set_them():
    torch.set_num_threads(3)
    mkl = re.findall("mkl_get_max_threads.*", torch.__config__.parallel_info())
    of_work = threads_of_work()
    assert len(of_work) > 1
    assert all(count == 1 for _, count in of_work)
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 3
    assert re.findall("mkl_get_max_threads.*", torch.__config__.parallel_info()) == mkl
    torch.set_num_threads(1)
    assert threads_of_work() == {(threading.current_thread().name, 1)}


def test_a_thread_of_ones_own_with_one_thread_of_torch_works_alone():
    torch.set_num_threads(2)

    def in_one():
        torch.set_num_threads(1)
        return threads_of_work(), threading.current_thread().name

    of_work, name = in_a_new_thread(in_one)
    assert of_work == {(name, 1)}


def test_small_inputs_are_not_divided():
    torch.set_num_threads(2)
    names = in_blocks(lambda *_: threading.current_thread().name, 1, torch.zeros(2, 3, 4000))
    assert set(names) == {threading.current_thread().name}


def test_losses_in_many_threads_at_once_are_those_of_one():
    torch.set_num_threads(2)
    logits, target = example(size=SIZE)
    loss = in_many_blocks("dice")
    expected = loss_and_gradient(loss, logits, target)
    results = []

    def compute():
        results.extend(loss_and_gradient(loss, logits, target) for _ in range(2))

    threads = [threading.Thread(target=compute) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(torch.equal(x, y) for result in results for x, y in zip(result, expected, strict=True))


def test_a_fork_of_the_process_has_threads_of_its_own():
    torch.set_num_threads(2)
    logits, target = example(size=SIZE)
    loss = in_many_blocks("ce")
    expected = loss(logits, target)

    def child():
        signal.alarm(20)  # A child that waits for threads of its parent must not wait for ever.
        assert torch.equal(loss(logits, target), expected)
        assert len(threads_of_work()) > 1

    assert tiny_training.forked(child) == 0
    assert torch.equal(loss(logits, target), expected)


def test_an_error_in_a_block_reaches_the_caller():
    torch.set_num_threads(2)
    begun = []

    def work(buffers, image, part):
        begun.append(image)
        raise OverflowError("too large")

    with pytest.raises(OverflowError, match="too large"):
        in_blocks(work, 1, torch.zeros(64, 1, 1 << 10))
    assert len(begun) <= 2
    assert len(threads_of_work()) > 1


def test_ctrl_c_stops_the_work():
    torch.set_num_threads(2)
    begun = []

    def work(buffers, image, part):
        begun.append(image)
        if len(begun) == 4:  # Until then the caller is sure to wait.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.02)

    with pytest.raises(KeyboardInterrupt):
        in_blocks(work, 1, torch.zeros(64, 1, 1 << 10))
    assert len(begun) < 64
    assert len(threads_of_work()) > 1


@pytest.mark.parametrize("possible", [0, 1])
def test_where_no_more_threads_can_start_the_loss_is_the_same(monkeypatch, possible):
    torch.set_num_threads(3)
    logits, target = example(size=SIZE)
    expected = loss_and_gradient(in_many_blocks("dice"), logits, target)
    monkeypatch.setattr("segkit.losses._blocks._Threads.of_process", {})
    start, started = threading.Thread.start, []

    def start_few(thread):
        if len(started) >= 2 * possible:  # Each thread of the pool needs another one for a moment.
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_few)
    got = loss_and_gradient(in_many_blocks("dice"), logits, target)
    torch.testing.assert_close(got, expected)
    assert len(started) == 2 * possible


def test_in_inference_mode_and_under_autocast_the_loss_is_the_same():
    torch.set_num_threads(2)
    logits, target = example(size=SIZE)
    logits, loss = logits.float(), in_many_blocks("ce", label_smoothing=0.1)
    expected = loss(logits, target)
    with torch.inference_mode():
        got = loss(logits.clone(), target)
        assert got.is_inference()
    assert torch.equal(got, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(logits, target), expected)


def test_in_several_threads_second_derivatives_are_those_of_one():
    logits, target = example(size=SIZE)
    logits.requires_grad_()
    loss = create_loss({"ce": 0.5, "dice": 0.5})
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        (gradient,) = torch.autograd.grad(loss(logits, target), logits, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), logits)[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_blocks_of_any_layout_are_views(layout):
    torch.set_num_threads(2)
    x = torch.zeros(2, 3, 128, 128).to(memory_format=layout)
    in_blocks(lambda buffers, image, part: part.add_(1 + image.start), 1, x.flatten(2))
    assert (x[0] == 1).all()
    assert (x[1] == 2).all()
