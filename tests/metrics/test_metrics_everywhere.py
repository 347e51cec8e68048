"""What holds for every metric: on accelerators, and over the ranks of a process group."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.many_ranks import on_ranks

from segkit.metrics import BoundaryIoU, CalibrationError, ConfusionMatrix, PerImageConfusion
from segkit.metrics._inputs import histogram, scatter_histogram

METRICS = (ConfusionMatrix, BoundaryIoU, CalibrationError, PerImageConfusion)
IMAGES = 7


def example(seed=0, size=(IMAGES, 10, 12)):
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(4, size, generator=random, dtype=torch.uint8)
    target[torch.rand(size, generator=random) < 0.2] = 255
    return torch.randn(size[0], 4, *size[1:], generator=random), target


def counted(kind, images=slice(None)):
    metric = kind(4)
    logits, target = example()
    if len(target[images]):
        metric.update(logits[images], target[images])
    return metric


@pytest.mark.parametrize("kind", METRICS)
def test_an_update_asks_for_no_value_of_the_data(kind):
    logits, target = example()
    metric = kind(4)
    for labels in (target, target.long()):
        # A meta tensor has no values: whatever would wait for an accelerator raises.
        metric.update(logits.to("meta"), labels.to("meta"))
    metric.update(logits.to("meta"), labels)
    if kind is not CalibrationError:
        metric.update(target.to("meta"), target.to("meta"))
    assert metric.counts.device.type == "meta"


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_counts_the_same_without_waiting(kind):
    logits, target = example()
    metric, images, labels = kind(4), logits.cuda(), target.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update(images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(metric.counts.cpu(), counted(kind).counts)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_the_way_of_accelerators_counts_like_bincount(dtype):
    cells = torch.randint(9, (3, 50), generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = torch.rand(3, 50, dtype=torch.float64)
    assert torch.equal(scatter_histogram(cells, 12), histogram(cells, 12))
    assert torch.allclose(scatter_histogram(cells, 12, weights), histogram(cells, 12, weights))


@pytest.mark.parametrize("kind", METRICS)
def test_without_a_process_group_all_reduce_does_nothing(kind):
    metric, expected = counted(kind), counted(kind).compute().to_dict()
    metric.all_reduce()
    assert metric.compute().to_dict() == expected


# World size to the images of each rank: unequal numbers, and one rank with none.
SHARES = {1: [slice(0, 7)], 2: [slice(0, 5), slice(5, 7)], 3: [slice(0, 6), slice(6, 6), slice(6, 7)]}


def scores_of_rank(ranks):
    """Return the counts and scores of each kind after `all_reduce`."""
    results = {}
    for kind in METRICS:
        metric = counted(kind, SHARES[ranks.count][ranks.rank])
        metric.all_reduce()
        results[kind] = {"counts": metric.counts, **metric.compute().to_dict()}
    return results


@pytest.fixture(scope="module")
def over_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return {world: on_ranks(world, scores_of_rank, folder / str(world)) for world in SHARES}


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no distributed package")
@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize(("world", "rank"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_every_rank_has_the_scores_of_the_whole_set(over_ranks, world, rank, kind):
    got = over_ranks[world][rank][kind]
    whole = counted(kind)
    assert torch.allclose(got.pop("counts"), whole.counts, rtol=1e-12)
    assert got == pytest.approx(whole.compute().to_dict(), rel=1e-9)
    assert not np.isnan(list(got.values())).any()
