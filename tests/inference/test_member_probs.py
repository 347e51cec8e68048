import copy
import errno
import os
import shutil

import numpy as np
import pytest
import torch

from segkit.data import CocoSegmentation
from segkit.errors import MachineError, NotFiniteError
from segkit.inference import MemberProbs, Predictor, sample_pixels
from segkit.models import create_model
from segkit.sliding_window import SlidingWindow
from segkit.tta import TTA, Member


@pytest.fixture(scope="module")
def models():
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        options = {"pyramid_channels": 16, "channels": 16, "pretrained": False}
        model = create_model("fpn", backbone="mobilenetv3_small_100", num_classes=3, **options).eval()
        torch.nn.init.normal_(model.head.weight, std=3)
        made.append(model)
    return made


def kept(predictor, data, folder, pixels=10**6):
    sizes = [data.target(i).size for i in range(len(data))]
    probs = MemberProbs(predictor, sample_pixels(sizes, pixels, seed=0), folder)
    probs.run(data)
    return probs


def test_the_views_of_tta_are_the_parts_of_its_mean(models):
    tta = TTA(scales=(0.5, 1.0), flips=("transpose", "h"), brightness=(1.0, 1.1))
    member, images = Member(models[0], models[0].preprocessing.normalise), 255 * torch.rand(1, 3, 20, 28)
    views = list(tta.each(member, images))
    assert len(views) == len(tta.views) == 12
    assert torch.allclose(torch.stack(views).mean(0), tta.ensemble([member], images), atol=1e-5)
    (plain,) = TTA().each(member, images)
    assert torch.allclose(views[[str(v) for v in tta.views].index(str(tta.views[6]))], plain, atol=1e-5)
    assert tta.views[6] == (1.0, 1.0, "identity")


@pytest.mark.parametrize("window", [None, SlidingWindow(32, overlap=0.4)])
def test_a_mixture_equals_the_result_of_the_predictor(models, shapes, tmp_path, window):
    data = CocoSegmentation(shapes[1])
    probs = kept(Predictor(models, tta=TTA(scales=(0.5, 1.0), flips="hv"), window=window), data, tmp_path)
    views = [i for i, view in enumerate(probs.views) if view.scale == 0.5 and view.turn in ("identity", "h")]
    predictor = Predictor(models, member_weights=(1, 3), tta=TTA(scales=(0.5,), flips="h"), window=window)
    for i in range(2):
        expected = predictor(data.image(i)).probs.reshape(3, -1)
        assert np.allclose(probs.mixture(i, (0.25, 0.75), views), expected, atol=2e-3)  # float16
    assert not list(tmp_path.iterdir())


def test_fewer_pixels_are_a_subset_of_all(models, shapes, tmp_path):
    data, predictor = CocoSegmentation(shapes[1]), Predictor(models[0])
    every, some = kept(predictor, data, tmp_path), kept(predictor, data, tmp_path, pixels=100)
    assert some[1].shape == (1, 1, 3, 100)
    assert np.array_equal(every[1][..., some.pixels[1]], some[1])
    assert some.bytes == 4 * 100 * 3 * 2


def test_the_same_share_of_each_image_is_drawn_without_repetition():
    pixels = sample_pixels([1000, 4000], 250, seed=1)
    assert [len(chosen) for chosen in pixels] == [100, 400]
    for chosen, size in zip(pixels, (1000, 4000), strict=True):
        assert np.array_equal(chosen // 10, np.arange(size // 10))
    assert np.array_equal(sample_pixels([7], 8, seed=1)[0], np.arange(7))


def test_a_full_disk_is_an_error_before_the_models_run(models, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"2 members for 1 views take 0\.00 GB, but .* has only 0\.00 GB left"):
        MemberProbs(Predictor(models), [np.arange(1000)], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_returns_nan_is_an_error_that_names_the_image(models, shapes, tmp_path):
    broken = copy.deepcopy(models[0])
    broken.head.bias.data[1] = torch.nan
    data = CocoSegmentation(shapes[1])
    with pytest.raises(NotFiniteError, match=r"val0\.png: a model returns values that are not finite"):
        kept(Predictor([models[0], broken]), data, tmp_path, pixels=10)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="macOS and Windows reserve nothing")
def test_room_that_another_process_takes_meanwhile_is_a_sentence_instead_of_a_crash(models, tmp_path, monkeypatch):
    def full(*where):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MachineError, match=f"of all images need 0 MB on the disk, but {tmp_path} has"):
        MemberProbs(Predictor(models), [np.arange(1000)], tmp_path)
    with pytest.raises(MachineError, match=r"the probabilities of an image need 0 MB on the disk, but .* has"):
        Predictor(models, probs="disk")(np.zeros((40, 40, 3), np.uint8))
