import os

import numpy as np
import pytest
from PIL import Image

from segkit.inference import Prediction
from segkit.report import batch_picture, label_picture, save_class_iou, save_curves
from segkit.visualize import create_palette, grid, legend, overlay, with_legend

IMAGE = np.full((20, 30, 3), 100, dtype=np.uint8)


@pytest.mark.parametrize("num_classes", [2, 12, 60, 255])
def test_the_colours_of_a_palette_differ(num_classes):
    palette = create_palette(num_classes)
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    assert len({tuple(colour) for colour in palette[:num_classes]}) == num_classes
    assert palette[0].tolist() == [0, 0, 0]
    assert palette[255].tolist() == [255, 255, 255]


# What red, green and blue light look like to a colour-blind eye. Source: Machado et al., "A Physiologically-based Model
# for Simulation of Color Vision Deficiency", 2009, severity 1.
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


def cielab(colours, eye):
    """Return sRGB colours (N, 3) in 0..255 as CIELAB of D65, as an eye (3, 3) sees them."""
    colours = np.asarray(colours) / 255
    light = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    light = np.clip(light @ np.transpose(eye), 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = light @ np.transpose(to_xyz) / (0.95047, 1, 1.08883)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def test_cielab_of_red():
    assert cielab([[255, 0, 0]], np.eye(3))[0] == pytest.approx([53.24, 80.09, 67.20], abs=0.02)


@pytest.mark.parametrize(
    ("eye", "of_eleven", "of_24"), [(np.eye(3), 30, 13), (PROTANOPIA, 17, 10), (DEUTERANOPIA, 17, 10)]
)
@pytest.mark.parametrize("background", [0, None])
def test_the_colours_of_a_palette_are_far_apart_also_for_colour_blind_people(eye, of_eleven, of_24, background):
    for classes, least in ((11, of_eleven), (24, of_24)):
        first = 0 if background is None else 1
        colours = cielab(create_palette(first + classes, background)[first : first + classes], eye)
        apart = np.linalg.norm(colours[:, None] - colours, axis=2)[np.triu_indices(classes, 1)]
        assert apart.min() >= least


def test_a_label_has_the_same_colour_in_a_palette_of_any_size():
    assert np.array_equal(create_palette(5)[:5], create_palette(60)[:5])


def test_more_than_256_classes_have_colours():
    palette = create_palette(300)
    assert palette.shape == (300, 3)
    assert palette[255].tolist() != [255, 255, 255]


@pytest.mark.parametrize("name", ["background", "Background", " BACKGROUND ", "_background_"])
def test_only_background_is_left_as_it_is(name):
    mask = np.zeros((20, 30), np.uint8)
    target = np.zeros((1, 20, 30), np.uint8)
    for names, tinted in (((name, "car"), False), (("road", "car"), True)):
        found = Prediction(mask, None, names, IMAGE)
        assert (found.overlay() != IMAGE).all() == tinted
        wide = Prediction(np.zeros((20, 120), np.uint8), None, names, np.zeros((20, 120, 3), np.uint8))
        assert (len(wide.overlay(legend=True)) > 20) == tinted
        pictures = (
            batch_picture(IMAGE[None], target, names)[4:24, 4:34],
            label_picture([IMAGE], {"truth": target}, names, cell=30)[22:42, 38:68],
        )
        for picture in pictures:
            assert (picture != IMAGE[0, 0]).any() == tinted


def test_an_overlay_tints_objects_outlines_them_and_leaves_background():
    palette, mask = create_palette(3), np.zeros((20, 30), np.uint8)
    mask[5:15, 5:20] = 1
    picture = overlay(IMAGE, mask, palette, opacity=0.5)
    assert np.array_equal(picture[mask == 0], IMAGE[mask == 0])
    assert picture[10, 10].tolist() == np.round((100 + palette[1].astype(float)) / 2).tolist()
    outline, inside = (np.abs(picture[p].astype(int) - palette[1]).sum() for p in ((5, 10), (10, 10)))
    assert outline < inside


def test_an_overlay_of_another_size_is_refused():
    with pytest.raises(ValueError, match="the size of the image"):
        overlay(IMAGE, np.zeros((3, 3), np.uint8), create_palette(2))


def test_a_legend_names_only_the_classes_of_the_mask():
    palette, names = create_palette(3), ("background", "can", "cup")
    mask, image = np.zeros((20, 100), np.uint8), np.zeros((20, 100, 3), np.uint8)
    assert with_legend(image, mask, names, palette) is image
    mask[0, 0] = 2
    strip = with_legend(image, mask, names, palette)[20:]
    colours = {tuple(c) for c in strip.reshape(-1, 3)}
    assert tuple(palette[2]) in colours
    assert tuple(palette[1]) not in colours
    assert with_legend(image[:, :95], mask[:, :95], names, palette).shape[0] == 20, "a name would not fit"


def test_a_legend_is_as_large_as_the_picture_and_counts_the_classes_that_do_not_fit():
    names = ["background", *(f"class {i}" for i in range(30))]
    palette = create_palette(len(names))

    def strip_of(height, width, classes):
        mask = np.arange(height * width).reshape(height, width) % (classes + 1)
        return with_legend(np.zeros((height, width, 3), np.uint8), mask, names, palette)[height:]

    def shown(strip):
        return {tuple(colour) for colour in strip.reshape(-1, 3).tolist()} & set(map(tuple, palette[1:31].tolist()))

    assert len(strip_of(2048, 2048, 2)) > 2 * len(strip_of(500, 500, 2))
    assert len(shown(strip_of(500, 500, 30))) == 30
    small = strip_of(80, 160, 30)
    assert len(small) <= 80 / 2 + 8
    assert 2 <= len(shown(small)) < 30
    assert (small[-22:, 100:] < 60).any(), "the number of the others"


def test_a_legend_breaks_into_rows_if_it_is_narrow():
    palette, names = create_palette(6), [f"long class name {i}" for i in range(6)]
    assert legend(names, range(6), palette, 150).shape[0] > legend(names, range(6), palette, 2000).shape[0]


def test_a_grid_fits_pictures_of_any_size():
    sheet = grid([IMAGE, np.zeros((300, 10, 3), np.uint8), IMAGE], columns=2, cell=64, gap=4)
    # The first row is as high as the tall picture, the second as the flat one: 64 * 20 / 30.
    assert sheet.shape == (4 + (64 + 4) + (43 + 4), 2 * 68 + 4, 3)
    assert grid([IMAGE], columns=1, titles=["can"]).shape[0] > grid([IMAGE], columns=1).shape[0]


def test_report_pictures_are_drawn(tmp_path):
    history = [
        {"epoch": e, "train_loss": 1 / e, "val_loss": 1.1 / e, "miou": 0.1 * e, "pixel_accuracy": 0.2 * e, "lr": 1e-3}
        for e in (1, 2, 3)
    ]
    save_curves(history, tmp_path / "curves.png")
    save_class_iou(("a", "b", "c"), [0.5, float("nan"), 0.9], tmp_path / "iou.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert (tmp_path / "iou.png").stat().st_size > 1000
    target = np.zeros((20, 30), np.uint8)
    names = ("ground", "can")
    assert batch_picture(np.stack([IMAGE] * 3), np.stack([target] * 3), names).ndim == 3
    assert label_picture([IMAGE], {"truth": [target], "prediction": [target]}, names).ndim == 3


@pytest.mark.parametrize("averaged", ["ema_val_loss", "ema_miou"])
def test_curves_also_show_the_averaged_weights(tmp_path, averaged):
    history = [
        {"epoch": e, "train_loss": 1 / e, "val_loss": 1.1 / e, "miou": 0.1 * e, "pixel_accuracy": 0.2 * e, "lr": 1e-3}
        | {"ema_val_loss": float("nan"), "ema_miou": float("nan")}
        for e in (1, 2, 3)
    ]
    save_curves(history, tmp_path / "without.png")
    save_curves([row | {averaged: 0.9 / row["epoch"]} for row in history], tmp_path / "with.png")
    without, drawn = (np.asarray(Image.open(tmp_path / name)) for name in ("without.png", "with.png"))
    assert (without != drawn).any()


def test_captions_stand_below_their_pictures_in_the_width_of_a_cell():
    plain = grid([IMAGE, IMAGE], 2, cell=60)
    short = grid([IMAGE, IMAGE], 2, cell=60, captions=["a", "b\nc"])
    assert short.shape[1] == plain.shape[1]
    assert short.shape[0] > plain.shape[0]
    assert (short < 60).any(), "dark letters"
    long = grid([IMAGE, IMAGE], 2, cell=60, captions=["a very long name " * 9, ""])
    assert (long[:, 64:68] == 255).all(), "nothing is written beyond the cell"


def test_names_that_are_not_utf_8_are_drawn_with_question_marks():
    name = os.fsdecode(b"caf\xe9")
    picture = np.zeros((40, 60, 3), np.uint8)
    drawn, expected = (grid([picture], 1, titles=[text], captions=[text]) for text in (name, "caf?"))
    assert np.array_equal(drawn, expected)
    picture, mask, palette = np.zeros((40, 120, 3), np.uint8), np.ones((40, 120), np.uint8), create_palette(2)
    drawn, expected = (with_legend(picture, mask, ("background", text), palette) for text in (name, "caf?"))
    assert np.array_equal(drawn, expected)


@pytest.mark.parametrize(("opacity", "apart"), [(0.5, 0), (0.35, 1), (1.0, 0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("background", [0, None])
def test_an_overlay_is_the_weighted_mean_of_image_and_colour(opacity, apart, dtype, background):
    random = np.random.default_rng(0)
    image, palette = random.integers(0, 256, (40, 50, 3), dtype=np.uint8), create_palette(12)
    mask = np.kron(random.integers(0, 12, (8, 10)), np.ones((5, 5), int)).astype(dtype)
    alpha = np.full(mask.shape, opacity)
    padded = np.pad(mask, 1, mode="edge")
    around = [padded[y : y + 40, x : x + 50] for y in range(3) for x in range(3)]
    alpha[np.any([near != mask for near in around], axis=0)] = max(opacity, 0.9)
    if background is not None:
        alpha[mask == background] = 0
    expected = np.round(image + alpha[..., None] * (palette[mask].astype(float) - image))
    found = overlay(image, mask, palette, opacity, background=background)
    assert np.abs(found - expected).max() <= apart


def test_a_label_beyond_the_palette_is_no_other_label():
    with pytest.raises(IndexError):
        overlay(IMAGE, np.full((20, 30), 256, np.int64), create_palette(2))
