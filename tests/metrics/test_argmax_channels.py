import pytest
import torch

from segkit.metrics import argmax_channels
from segkit.metrics.labels import pixels_at_a_time


def ties(size, seed=0):
    """Few different values, so that the largest is often not alone."""
    return torch.randint(-2, 3, size, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("size", [(3, 5, 7), (2, 12, 9, 4), (2, 3, 4, 5, 6), (1, 1, 1, 1), (0, 3, 4, 4), (2, 3, 0, 4)])
def test_labels_equal_torch_argmax_and_the_first_of_equals_wins(size, dtype):
    logits = ties(size).clamp(min=0).to(getattr(torch, dtype))
    expected = logits.float().argmax(-3) if logits.numel() else logits.new_zeros((*size[:-3], *size[-2:])).long()
    assert torch.equal(argmax_channels(logits).long(), expected)


@pytest.mark.parametrize("channels", [2, 12, 255, 256, 300])
def test_more_pixels_than_a_block_are_joined_in_place(channels):
    width = pixels_at_a_time(channels) // 10 + 3
    logits = ties((1, channels, 21, width))
    for layout in (logits, logits.to(memory_format=torch.channels_last), logits.transpose(2, 3).contiguous().mT):
        assert torch.equal(argmax_channels(layout).long(), logits.argmax(1))


@pytest.mark.parametrize(
    ("channels", "dtype"),
    [(1, torch.uint8), (255, torch.uint8), (256, torch.int16), (32767, torch.int16), (32768, torch.int32)],
)
def test_the_labels_have_the_smallest_type_that_holds_one_more_than_the_last(channels, dtype):
    logits = torch.zeros(channels, 1, 2)
    logits[-1, 0, 0] = 1
    logits[0, 0, 1] = float("nan")
    labels = argmax_channels(logits)
    assert labels.dtype == dtype
    assert labels.tolist() == [[channels - 1, channels]]


def test_infinities_are_numbers_and_nan_is_no_class():
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[-inf, -inf], [-inf, inf], [inf, -inf], [inf, inf], [nan, 0.0], [0.0, nan], [-inf, nan]])
    assert argmax_channels(logits.T[:, None]).tolist() == [[0, 1, 0, 0, 2, 2, 2]]


def test_the_way_of_accelerators_gives_the_same_shape_and_type():
    labels = argmax_channels(torch.zeros(2, 12, 4, 5, device="meta"))
    assert labels.shape == (2, 4, 5)
    assert labels.dtype == torch.uint8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_labels():
    logits = ties((2, 12, 33, 20))
    logits[0, 3, 4, 5] = float("nan")
    assert torch.equal(argmax_channels(logits.cuda()).cpu(), argmax_channels(logits))


def test_too_few_dimensions_are_named():
    with pytest.raises(ValueError, match=r"`logits` must be \(\.\.\., C, H, W\), got \(3, 4\)"):
        argmax_channels(torch.zeros(3, 4))
