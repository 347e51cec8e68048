from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from segkit.models.preprocessing import Preprocessing
from segkit.tta import FLIPS, MERGES, TTA, TURNS, Member
from segkit.tta.engine import PRESETS


class PixelModel(nn.Module):
    """Logits that depend only on each pixel, so that every view agrees exactly after its inverse."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 1)
        self.calls = []

    def forward(self, images):
        self.calls.append(tuple(images.shape))
        return self.conv(images)


class LocalModel(nn.Module):
    """Logits that depend on a neighbourhood which is not symmetric, so that every view differs."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.preprocessing = Preprocessing()

    def forward(self, images):
        return self.conv(images) * 3


class Ramp(nn.Module):
    def forward(self, images):
        return torch.cat([images[:, :1], torch.zeros_like(images[:, :1])], dim=1)


@pytest.mark.parametrize("merge", ["mean", "gmean"])
@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("size", [(7, 10), (1, 1), (33, 8)])
def test_turns_are_undone_exactly(flips, size, merge):
    model, images = PixelModel(), torch.randn(2, 3, *size)
    expected = model(images).softmax(1)
    torch.testing.assert_close(TTA(flips=flips, merge=merge)(model, images), expected)


def test_the_turns_are_the_eight_different_symmetries_of_the_square():
    square = torch.arange(9.0).view(1, 1, 3, 3)
    seen = {tuple(turn.apply(square).flatten().tolist()) for turn in TURNS.values()}
    assert len(seen) == 8
    for name, k in (("rot90", 1), ("rot180", 2), ("rot270", 3)):
        assert torch.equal(TURNS[name].apply(square), torch.rot90(square, k, (2, 3)))


@pytest.mark.parametrize("scale", [0.05, 0.7, 0.75, 1.1, 1.3])
def test_any_size_with_any_scale_comes_back_at_its_size(scale):
    model, tta = PixelModel(), TTA(scales=(scale, 1.0), flips="v")
    for height in range(1, 200, 3):
        assert tta(model, torch.randn(1, 3, height, 201 - height)).shape[-2:] == (height, 201 - height)


def test_resizing_does_not_shift_a_ramp():
    ramp = torch.linspace(-1, 1, 40).view(1, 1, 1, 40).expand(1, 3, 30, 40)
    probs = TTA(scales=(0.75, 1.25))(Ramp(), ramp)
    inner = (probs - Ramp()(ramp).softmax(1))[..., 3:-3]
    assert inner.abs().max() < 1e-3


def test_the_turns_of_a_scale_run_as_one_batch_without_duplicates():
    model = PixelModel()
    TTA(scales=(1.0, 0.5, 1.0), flips=("h", "identity", "h", "rot180"))(model, torch.randn(2, 3, 8, 6))
    assert model.calls == [(6, 3, 8, 6), (6, 3, 4, 3)]


def test_quarter_turns_of_an_oblong_image_are_a_separate_batch():
    model = PixelModel()
    TTA(flips="d4")(model, torch.randn(1, 3, 8, 6))
    assert model.calls == [(4, 3, 8, 6), (4, 3, 6, 8)]


def test_max_pixels_splits_batches_without_changing_the_result():
    images = torch.randn(3, 3, 9, 7)
    whole = TTA(scales=(1, 1.3), flips="d4")(LocalModel(), images)
    for max_pixels in (1, 9 * 7 * 3, 9 * 7 * 4):
        tta = TTA(scales=(1, 1.3), flips="d4", max_pixels=max_pixels)
        torch.testing.assert_close(tta(LocalModel(), images), whole)
    model = PixelModel()
    TTA(flips="hv", max_pixels=63)(model, images)
    assert set(model.calls) == {(1, 3, 9, 7)}


@pytest.mark.parametrize("merge", [m for m in MERGES if m != "logits"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_every_merge_equals_the_slow_way(merge, align_corners):
    images = torch.randn(2, 3, 10, 7)
    members = [Member(LocalModel(0), lambda x: x, 0.3), Member(LocalModel(1), lambda x: x - 1, 0.7)]
    tta = TTA(scales=(0.8, 1, 1.5), flips="d4", merge=merge, align_corners=align_corners)
    found = tta.ensemble(members, images)
    torch.testing.assert_close(found, slowly(members, images, tta))
    torch.testing.assert_close(found.sum(1), torch.ones(2, 10, 7))


def slowly(members, images, tta):
    """All views at the images' size, then merged."""
    options = {"mode": "bilinear", "align_corners": tta.align_corners}
    logits, weights = [], []
    for view, member in product(tta.views, members):
        size = [round(length * view.scale) for length in images.shape[-2:]]
        scaled = F.interpolate(images, size=size, **options)
        turn = TURNS[view.turn]
        of_view = turn.undo(member.model(turn.apply(member.prepare(scaled))))
        logits.append(of_view.detach())
        weights.append(member.weight)
    weights = torch.tensor(weights).view(-1, 1, 1, 1, 1)

    def at_full_size(maps):
        return torch.stack([F.interpolate(m, size=images.shape[-2:], **options) for m in maps])

    def mean(maps):
        return (maps * weights).sum(0) / weights.sum()

    if tta.merge == "logits-sum":
        return (2 * mean(at_full_size(logits))).softmax(1)
    if tta.merge == "gmean":
        return mean(at_full_size(logits)).softmax(1)
    probs = at_full_size([x.softmax(1) for x in logits])
    if tta.merge in ("max", "min"):
        extreme = probs.amax(0) if tta.merge == "max" else probs.amin(0)
        return extreme / extreme.sum(1, keepdim=True)
    if tta.merge == "vote":
        probs = F.one_hot(probs.argmax(2), 4).movedim(-1, 2).float()
    if tta.merge == "sharpened":
        probs = probs**2 / (probs**2).sum(2, keepdim=True)
    return mean(probs)


def test_gmean_is_the_geometric_mean_of_the_probabilities_and_never_underflows():
    images = torch.randn(1, 3, 5, 6)
    logs = [TURNS[turn].undo(LocalModel()(TURNS[turn].apply(images))).log_softmax(1) for turn in FLIPS["hv"]]
    geometric = torch.stack(logs).mean(0).exp()
    expected = geometric / geometric.sum(1, keepdim=True)
    torch.testing.assert_close(TTA(flips="hv", merge="gmean")(LocalModel(), images), expected)
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert torch.equal(TTA(flips="hv", merge="gmean")(nn.Identity(), logits)[0, :, 0, 0], torch.tensor([1.0, 0.0]))


def test_the_merge_logits_averages_logits():
    images = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(TTA(flips="d4", merge="logits")(PixelModel(), images), PixelModel()(images))


def test_the_hflip_preset_equals_the_seeds_own_function():
    images = torch.randn(1, 3, 24, 40)
    total = np.zeros((1, 4, 24, 40))
    for scale in (0.75, 1.0, 1.25):
        scaled = ndimage.zoom(images.numpy(), (1, 1, scale, scale), order=1, prefilter=False)
        for flipped in (False, True):
            view = torch.from_numpy(scaled[..., ::-1].copy() if flipped else scaled)
            logits = F.interpolate(LocalModel()(view), size=(24, 40), mode="bilinear", align_corners=True)
            logits = logits.detach().numpy()
            total += logits[..., ::-1] if flipped else logits
    expected = torch.from_numpy(total / 6).float().softmax(1)
    found = TTA.preset("seed_hflip_multiscale")(LocalModel(), images)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def as_ttach(models, images, turns, scales, factors=(1,)):
    """Logits as ttach's wrapper returns them, summed over the models: turn, scale by nearest, multiply; then undo."""
    total = 0
    for turn, scale, factor in product(map(TURNS.get, turns), scales, factors):
        turned = turn.apply(images)
        size = [int(side * scale) for side in turned.shape[-2:]]
        logits = sum(model(F.interpolate(turned, size=size) * factor) for model in models)
        total = total + turn.undo(F.interpolate(logits, size=turned.shape[-2:]))
    return (total / len(turns) / len(scales) / len(factors)).detach()


@pytest.mark.parametrize("brightness", [(1,), (0.9, 1, 1.1)])
def test_nearest_is_the_resizing_of_ttach(brightness):
    images = torch.randn(2, 3, 16, 24)
    options = {"scales": (0.75, 1, 1.25, 1.5), "flips": "d4", "brightness": brightness, "brightness_of": "input"}
    found = TTA(**options, merge="logits", resize="nearest")(LocalModel(), images)
    torch.testing.assert_close(found, as_ttach([LocalModel()], images, TURNS, options["scales"], brightness))


def test_the_presets_of_ttach_equal_its_results():
    images = torch.randn(1, 3, 16, 24)
    models = [LocalModel(0), LocalModel(1)]
    members = [Member(model, lambda x: x, 0.5) for model in models]
    for name, turns in (("vflip", "identity v"), ("turns", "identity v rot180 rot270 h transpose")):
        tta = TTA.preset(f"seed_{name}_multiscale")
        expected = as_ttach(models, images, turns.split(), tta.scales).softmax(1)
        torch.testing.assert_close(tta.ensemble(members, images), expected)
    expected = as_ttach(models[:1], images, FLIPS["hv"], (0.75, 1, 1.25), (0.9, 1, 1.1)).softmax(1)
    torch.testing.assert_close(TTA.preset("seed_flips_brightness")(models[0], images), expected)


@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_nearest_with_multiples_keeps_places(fit):
    images = torch.rand(1, 3, 13, 22)
    tta = TTA(scales=(1, 2), flips="d4", merge="logits", resize="nearest", multiple=8, fit=fit)
    model = PixelModel()
    found = tta(model, images)
    assert all(side % 8 == 0 for shape in model.calls for side in shape[2:])
    if fit == "pad":  # sides of the image and of twice the image: nothing moves
        torch.testing.assert_close(found, PixelModel()(images))
    assert found.shape[2:] == images.shape[2:]


def test_the_presets_run_each_different_view_once():
    assert {name: len(tta.views) for name, tta in PRESETS.items()} == {
        "seed_vflip_multiscale": 6,
        "seed_hflip_multiscale": 6,
        "seed_turns_multiscale": 24,
        "seed_flips_brightness": 36,
    }
    square = torch.randn(1, 1, 5, 5)
    composed = [torch.rot90(x, k, (2, 3)) for x in (square, square.flip(2)) for k in (0, 2, 3)]
    turns = [TURNS[name].apply(square) for name in TTA.preset("seed_turns_multiscale").turns]
    assert len(turns) == 6
    assert all(any(torch.equal(turn, other) for other in composed) for turn in turns)


def test_brightness_works_on_the_rgb_image_and_clips_at_white():
    seen = []
    model = LocalModel()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rgb = torch.tensor([10.0, 100.0, 250.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    TTA(brightness=(1, 1.1))(model, model.preprocessing.normalise(rgb))
    expected = torch.tensor([11.0, 110.0, 255.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(model.preprocessing.denormalise(seen[0]), rgb)
    torch.testing.assert_close(model.preprocessing.denormalise(seen[1]), expected)


@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_a_model_that_takes_only_multiples_of_eight_gets_them(fit):
    model = PixelModel()
    images = torch.randn(1, 3, 19, 30)
    tta = TTA(scales=(0.6, 1, 1.3), flips="d4", multiple=8, fit=fit)
    assert tta(model, images).shape == (1, 4, 19, 30)
    assert all(side % 8 == 0 for call in model.calls for side in call[2:])
    if fit == "pad":
        plain = TTA(flips="d4")(PixelModel(), images)
        torch.testing.assert_close(TTA(flips="d4", multiple=8, fit="pad")(PixelModel(), images), plain)


def test_the_uncertainty_is_computed_over_the_views():
    images, tta = torch.randn(2, 3, 9, 6), TTA(scales=(1, 0.5), flips="d4")
    views = [TTA(scales=(view.scale,)).ensemble([Member(Turned(view.turn), lambda x: x)], images) for view in tta.views]
    found, stack = tta.uncertainty(LocalModel(), images), torch.stack(views)
    torch.testing.assert_close(found.probs, stack.mean(0))
    index = stack.mean(0).argmax(1, keepdim=True)
    expected = stack.std(0, correction=0).gather(1, index)[:, 0]
    torch.testing.assert_close(found.std, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.entropy, -(stack.mean(0) * stack.mean(0).log()).sum(1))


class Turned(LocalModel):
    def __init__(self, turn):
        super().__init__()
        self.turn = TURNS[turn]

    def forward(self, images):
        return self.turn.undo(super().forward(self.turn.apply(images)))


def test_views_that_agree_are_certain():
    found = TTA(flips="d4").uncertainty(PixelModel(), torch.randn(1, 3, 6, 6))
    assert found.std.max() < 1e-3


@pytest.mark.parametrize("merge", MERGES)
def test_the_callers_images_stay_as_they_are(merge):
    images = torch.rand(1, 3, 6, 5)
    before = images.clone()
    TTA(scales=(1, 2), flips="hv", merge=merge)(nn.Identity(), images)
    assert torch.equal(images, before)


def test_the_mode_of_the_model_is_kept_and_dropout_is_off():
    model = nn.Sequential(PixelModel(), nn.Dropout(0.5)).train()
    images = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(TTA()(model, images), model[0](images).softmax(1))
    assert model.training
    with pytest.raises(RuntimeError):
        TTA()(model, torch.randn(1, 2, 4, 4))
    assert model.training


def test_no_graph_is_kept_and_half_precision_is_merged_in_float32():
    probs = TTA(flips="hv")(PixelModel().bfloat16(), torch.randn(1, 3, 4, 4).bfloat16())
    assert probs.dtype == torch.float32
    assert not probs.requires_grad


def test_the_plan_is_readable():
    assert str(TTA()) == "1 view: scale 1"
    assert str(TTA(scales=(0.5, 1), flips="v")) == "4 views: scales 0.5, 1 x turns identity, v; mean"
    assert str(TTA(flips="v", resize="nearest")) == "2 views: turns identity, v; mean, resized by nearest"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flips": "x"}, "unknown flips"),
        ({"flips": ["rot45"]}, "unknown turn 'rot45'.*rot90"),
        ({"scales": (0,)}, "`scales` must be positive"),
        ({"scales": ()}, "`scales` must be positive"),
        ({"scales": (float("nan"),)}, "`scales` must be positive"),
        ({"brightness": (-1,)}, "`brightness` must be positive"),
        ({"merge": "meen"}, "unknown merge 'meen'; did you mean 'mean'"),
        ({"fit": "crop"}, "unknown fit"),
        ({"resize": "bicubic"}, "unknown resize 'bicubic'. Known: bilinear, nearest"),
        ({"brightness_of": "output"}, "unknown brightness_of 'output'. Known: image, input"),
        ({"multiple": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TTA(**options)


def test_brightness_for_a_model_without_preprocessing_is_named():
    with pytest.raises(ValueError, match="needs a model with `preprocessing`"):
        TTA(brightness=(0.9, 1))(PixelModel(), torch.randn(1, 3, 4, 4))


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown preset 'seed'.* Known: seed_vflip_multiscale"):
        TTA.preset("seed")


class OneChannel(nn.Module):
    """The first channel of the images as the only logit."""

    preprocessing = Preprocessing()

    def forward(self, images):
        return images[:, :1]


@pytest.mark.parametrize("merge", [*sorted(MERGES.keys() - {"vote", "logits"})])
def test_one_channel_is_the_sigmoid_of_a_class_against_the_background(merge):
    images = 4 * torch.randn(2, 3, 5, 7)
    of_class = images[:, :1].sigmoid()
    expected = torch.cat([1 - of_class, of_class], dim=1)
    if merge == "sharpened":
        expected = expected.square() / expected.square().sum(1, keepdim=True)
    torch.testing.assert_close(TTA(flips="hv", merge=merge)(OneChannel(), images), expected)
    torch.testing.assert_close(TTA(flips="h", merge="gmean").uncertainty(OneChannel(), images).probs[:, 1:], of_class)


def test_one_channel_votes_for_its_class_above_0_and_keeps_its_logits():
    images = torch.randn(1, 3, 5, 7)
    assert torch.equal(TTA(flips="h", merge="vote")(OneChannel(), images)[:, 1] == 1, images[:, 0] > 0)
    assert torch.equal(TTA(merge="logits")(OneChannel(), images), images[:, :1])


def test_views_that_exclude_each_other_leave_all_classes_equal_under_min():
    class Saturated(nn.Module):  # sure of class 0 on the left and of class 1 on the right, in every view
        def forward(self, images):
            logits = torch.full((len(images), 3, *images.shape[2:]), -1e4)
            logits[:, 0, :, :2], logits[:, 1, :, 2:] = 1e4, 1e4
            return logits

    probs = TTA(flips="h", merge="min")(Saturated(), torch.zeros(1, 3, 1, 4))
    torch.testing.assert_close(probs, torch.full((1, 3, 1, 4), 1 / 3))


@pytest.mark.parametrize("merge", MERGES)
def test_nan_in_one_view_is_nan_in_the_result(merge):
    class Broken(nn.Module):
        def forward(self, images):
            logits = torch.ones(len(images), 3, *images.shape[2:])
            logits[0, 1, 0, 0] = torch.nan  # the corner of the first view only
            return logits

    probs = TTA(flips="h", merge=merge)(Broken(), torch.zeros(1, 3, 3, 3))
    assert probs.isnan().any(1).sum() == 1


def test_the_result_can_be_trained_on_and_changed_in_place():
    model, images = LocalModel(), torch.randn(1, 3, 8, 8)
    target = TTA(flips="h")(model, images)
    F.kl_div(model(images).log_softmax(1), target, reduction="batchmean").backward()
    assert model.conv.weight.grad.abs().sum() > 0
    target += TTA(flips="h").uncertainty(model, images).probs
    assert next(TTA().each(Member(model, lambda x: x), images)).requires_grad_().is_leaf


class InADict(nn.Module):
    def __init__(self, model, name="out"):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, images):
        return {self.name: self.model(images), "aux": None}


def test_the_logits_of_a_dict_are_its_entry_out_as_in_torchvision():
    model, images = LocalModel(), torch.randn(2, 3, 8, 12)
    tta = TTA(flips="d4", max_pixels=100)
    assert torch.equal(tta(InADict(model), images), tta(model, images))
    with pytest.raises(ValueError, match='a dict that has them as "out", got a dict'):
        tta(InADict(model, "logits"), images)


def test_logits_of_a_quarter_of_the_size_are_not_shifted_by_a_padded_border():
    class Quarter(nn.Module):
        def forward(self, images):
            return F.avg_pool2d(images, 4)

    images = torch.randn(1, 3, 10, 13)
    padded = F.pad(images, (0, 3, 0, 2), mode="replicate")
    expected = F.interpolate(F.avg_pool2d(padded, 4), size=(12, 16), mode="bilinear")[..., :10, :13].softmax(1)
    torch.testing.assert_close(TTA(multiple=4, fit="pad")(Quarter(), images), expected)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scales": "1"}, "`scales` must be positive numbers, got '1'"),
        ({"scales": ("1", 2)}, "`scales` must be positive numbers"),
        ({"flips": None}, "`flips` must be one of none, h, v, hv, d4, or a list of turns, got None"),
        ({"merge": ["mean"]}, r"unknown merge \['mean'\]"),
        ({"multiple": "4"}, "`multiple` must be a whole number of at least 1, got '4'"),
        ({"max_pixels": 1e6}, "`max_pixels` must be a whole number of at least 1, got 1000000.0"),
    ],
)
def test_an_option_of_a_wrong_type_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        TTA(**options)


def test_one_scale_needs_no_list():
    assert TTA(scales=0.5, brightness=np.float32(2)) == TTA(scales=(0.5,), brightness=(2.0,))


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), np.zeros((1, 3, 8, 8), np.float32)]
)
def test_images_of_another_kind_are_one_sentence(images):
    with pytest.raises(ValueError, match=r"`images` must be a tensor \(N, 3, H, W\) float"):
        TTA()(PixelModel(), images)


def test_frozen_norms_of_a_model_that_trains_stay_frozen():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).train()
    model[1].eval()
    TTA(flips="h")(model, torch.randn(1, 3, 4, 4))
    assert [part.training for part in model.modules()] == [True, True, False]
