import numpy as np
import pytest
from PIL import Image

from segkit.data import DataError, list_images, read_image, write_image, write_mask
from segkit.visualize import create_palette

RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.integers(0, 256, (5, 8, 3), dtype=np.uint8)


def save_turned(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PICTURE).save(path, exif=exif)
    return path


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    image = read_image(save_turned(tmp_path / "a.png", 6))
    assert np.array_equal(image, np.rot90(PICTURE, -1))


def test_annotations_drawn_on_the_unturned_photograph_leave_it_so(tmp_path):
    path = save_turned(tmp_path / "a.png", 6)
    assert np.array_equal(read_image(path, size=(5, 8)), PICTURE)
    assert read_image(path, size=(8, 5)).shape == (8, 5, 3)


def test_another_size_than_annotated_is_named(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is 5 x 8 pixels .* say 5 x 9"):
        read_image(tmp_path / "a.png", size=(5, 9))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    Image.fromarray(PICTURE).convert(mode).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif")
    assert (image.shape, image.dtype) == ((5, 8, 3), np.uint8)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.jpg is not an image"),
        (b"<!DOCTYPE html>", r"a\.jpg is not an image"),
        (None, r"the image .*a\.jpg is damaged"),
    ],
)
def test_an_unreadable_image_is_named(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.repeat(np.repeat(PICTURE, 20, 0), 20, 1)).save(path)
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    with pytest.raises(DataError, match=message):
        read_image(path)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no image at .*a\.jpg"):
        read_image(tmp_path / "a.jpg")


def test_a_written_mask_holds_the_labels_and_the_colours(tmp_path):
    mask, palette = RANDOM.integers(0, 4, (6, 7), dtype=np.uint8), create_palette(4)
    write_mask(tmp_path / "m.png", mask, palette)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), mask)
        assert np.array_equal(np.asarray(image.convert("RGB")), palette[mask])
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_images_are_listed_recursively_in_order_without_hidden_ones(tmp_path):
    for name in ("b/2.JPG", "a.png", ".hidden/x.png", "b/1.jpeg", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == ["a.png", "b/1.jpeg", "b/2.JPG"]


def test_an_image_survives_writing_and_reading(tmp_path):
    write_image(tmp_path / "a.png", PICTURE)
    assert np.array_equal(read_image(tmp_path / "a.png"), PICTURE)
