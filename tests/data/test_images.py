import contextlib
import os
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from helpers.limits import no_more_files
from PIL import Image, ImageOps, features

from segkit.data import DataError, FolderSegmentation, list_images, read_image, write_image, write_mask
from segkit.data.images import Reading, list_other_files, read_image_header
from segkit.errors import MachineError, UsageError
from segkit.visualize import create_palette

RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.integers(0, 256, (5, 8, 3), dtype=np.uint8)


def save_turned(path, orientation, image=None):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (image or Image.fromarray(PICTURE)).save(path, exif=exif, lossless=True)
    return path


def of_mode(mode):
    """The picture in one of Pillow's modes, and its RGB (H, W, 3)."""
    if mode == "I;16":
        return Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257), np.repeat(PICTURE[..., :1], 3, axis=2)
    image = Image.fromarray(PICTURE).convert(mode)
    return image, np.array(image.convert("RGB"))


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("png", "RGB"), ("webp", "RGB"), *(("tif", mode) for mode in ("RGB", "L", "P", "RGBA", "CMYK", "I;16"))],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_exif_says_or_left_as_its_annotations_were_drawn(
    tmp_path, suffix, mode, orientation
):
    image, stored = of_mode(mode)
    path = save_turned(tmp_path / f"a.{suffix}", orientation, image)
    other = save_turned(tmp_path / "b.png", orientation, Image.fromarray(stored))
    turned = np.array(ImageOps.exif_transpose(Image.open(other)))
    assert np.array_equal(read_image(path), turned)
    assert np.array_equal(read_image(path, size=turned.shape[:2]), turned)
    if turned.shape != stored.shape:
        assert np.array_equal(read_image(path, size=(5, 8)), stored)


def test_a_header_is_read_without_decoding(tmp_path):
    path = save_turned(tmp_path / "a.png", 6)
    path.write_bytes(path.read_bytes()[:-60])
    header = read_image_header(path)
    assert (header.stored, header.turned, header.orientation) == ((5, 8), (8, 5), 6)
    with pytest.raises(DataError, match="is damaged"):
        read_image(path)


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


RAMP = np.array([[0, 100, 200, 255]])
CONVENTIONS = {
    "float from 0 to 1": (RAMP / 255).astype(np.float32),
    "float of 8 bits": RAMP.astype(np.float32),
    "float of 8 bits, resized": RAMP.astype(np.float32) + np.float32([[0.1, 0.2, 0.3, -0.1]]),
    "32-bit numbers of 8 bits": RAMP.astype(np.int32),
    "16-bit numbers of 8 bits": RAMP.astype(np.uint16),
    "all 16 bits": (RAMP * 257).astype(np.uint16),
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_deep_values_are_read_by_the_range_that_is_known(tmp_path, convention):
    Image.fromarray(CONVENTIONS[convention]).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif")
    assert (image == RAMP[..., None]).all()
    assert read_image_header(tmp_path / "a.tif").bits == (16 if "16" in convention else 32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32([[0, 0.5, 812]]), "float values from 0 to 812"),
        (np.float32([[0, 0.5, 1.3]]), "float values from 0 to 1.3"),  # more than white, or nearly black?
        (np.float32([[-1, 0.5, 1]]), "float values from -1 to 1"),
        (np.float32([[0, np.nan, 1]]), "float values from nan"),
        (np.int32([[0, 256, 70_000]]), "32-bit values from 0 to 70000"),
        (np.float32([[0, 33.3, 100]]), "float values from 0 to 100"),  # percent
        (np.uint16([[0, 1000, 4095]]), "none is above 16383"),
        (np.uint16([[0, 1000, 8191]]), "none is above 16383"),
        (np.uint16([[0, 1000, 16383]]), "none is above 16383"),
    ],
)
def test_deep_values_of_an_unknown_range_are_refused(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif .*{message}.*convert it to 8 bits"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("bits", [12, 13, 14])
def test_colours_of_fewer_bits_in_16_are_refused_and_not_read_as_dark(tmp_path, bits):
    colours = np.random.default_rng(0).integers(0, 2**bits, (5, 8, 3), dtype=np.uint16)
    factor = 2 ** (16 - bits)
    for suffix in ("png", "tif", "ppm"):
        dim, good = tmp_path / f"dim.{suffix}", tmp_path / f"good.{suffix}"
        cv2.imwrite(str(dim), colours)
        cv2.imwrite(str(good), colours * factor)
        with pytest.raises(DataError, match=rf"dim\.{suffix} has 16 bits .* none is above 16383"):
            read_image(dim)
        assert np.abs(read_image(good) - colours[..., ::-1] * factor / 257).max() <= 1
        assert read_image_header(good).bits == 16


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_png_may_state_the_bits_of_its_values(tmp_path):
    values = np.array([[0, 1000, 4095]], dtype=np.uint16)
    for name, factor in (("stored.png", 1), ("scaled.png", 16)):
        Image.fromarray(values * np.uint16(factor)).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:33] + png_chunk(b"sBIT", b"\x0c") + content[33:])  # 12, after IHDR
        assert read_image(tmp_path / name)[0, :, 0].tolist() == [0, 62, 255]  # 1000 / 4095 * 255 is 62.3


def test_a_tiff_may_have_12_bits(tmp_path):
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    pixels = (1000 << 12 | 4095).to_bytes(3, "big")
    (tmp_path / "a.tif").write_bytes(
        b"II*\0" + struct.pack("<I", 12) + pixels + b"\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    )
    assert read_image_header(tmp_path / "a.tif").bits == 12
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [62, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_smallest_value_is_white_is_read_as_it_looks(tmp_path, dtype):
    Image.fromarray((RAMP * (257 if dtype == np.uint16 else 1)).astype(dtype)).save(tmp_path / "a.tif")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    tag = content.index(struct.pack("<HHI", 262, 3, 1))
    content[tag + 8] = 0  # white is 0; the pixels stay as they are
    (tmp_path / "a.tif").write_bytes(content)
    assert (read_image(tmp_path / "a.tif") == 255 - RAMP[..., None]).all()


def test_an_eps_never_starts_ghostscript(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 5\n%%EndComments\nshowpage\n")
    for read in (read_image_header, read_image):
        with pytest.raises(DataError, match=r"a\.jpg is not an image that can be read: it starts with '%!PS-Ado'"):
            read(tmp_path / "a.jpg")


def test_a_format_without_a_signature_is_read_by_its_suffix_only(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.tga")
    assert np.array_equal(read_image(tmp_path / "a.tga"), PICTURE)
    (tmp_path / "a.tga").rename(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="is not an image"):
        read_image(tmp_path / "a.jpg")


def test_a_heic_file_is_named_as_one(tmp_path):
    (tmp_path / "a.HEIC").write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(12))
    assert list_images(tmp_path) == [tmp_path / "a.HEIC"]
    with pytest.raises(DataError, match=r"a\.HEIC is not an image .* HEIC file, .* convert it to JPEG"):
        read_image(tmp_path / "a.HEIC")


def test_a_machine_that_cannot_read_is_not_taken_for_a_damaged_image(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    read_image(tmp_path / "a.png")
    with no_more_files(), pytest.raises(MachineError, match=r"a\.png: Too many open files; allow more"):
        read_image(tmp_path / "a.png")
    failing = tmp_path / "b.png"
    failing.symlink_to("/proc/self/mem")  # it can be opened, but not read
    with pytest.raises(MachineError, match=r"b\.png: Input/output error; this is a fault of the machine"):
        read_image(failing)


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(DataError, match=r"cannot read the image .*a\.png: Is a directory"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.jpg is not an image that can be read: it is empty"),
        (b"<!DOCTYPE html>", r"a\.jpg is not an image that can be read: it starts with '<!DOCTYP'"),
        (None, r"the image .*a\.jpg is damaged"),
    ],
)
def test_an_unreadable_image_is_named(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.repeat(np.repeat(PICTURE, 20, 0), 20, 1)).save(path)
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    with pytest.raises(DataError, match=message):
        read_image(path)


def test_a_bomb_is_refused_by_its_header(tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    for read in (read_image, read_image_header):
        with pytest.raises(DataError, match=r"a\.png has 60000 x 60000 pixels .* more than 178956970; `max_pixels`"):
            read(tmp_path / "a.png")
    assert read_image_header(tmp_path / "a.png", Reading(max_pixels=4 * 10**9)).stored == (60_000, 60_000)


def test_our_size_limit_does_not_change_pillows_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # it warns beyond this, and refuses twice as many
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), PICTURE)
    with pytest.raises(DataError, match=r"more than 39; `max_pixels`"):
        read_image(tmp_path / "a.png", reading=Reading(max_pixels=39))
    assert Image.MAX_IMAGE_PIXELS == 40


def test_an_ignored_orientation_leaves_the_pixels_as_they_are_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    ignoring = Reading(exif="ignore")
    for name in ("a.png", "a.tif"):
        Image.fromarray(PICTURE).save(tmp_path / name, exif=exif)
        assert np.array_equal(read_image(tmp_path / name, reading=ignoring), PICTURE)
        assert read_image_header(tmp_path / name, ignoring).turned == PICTURE.shape[:2]
        with pytest.raises(DataError, match="annotations say"):
            read_image(tmp_path / name, PICTURE.shape[1::-1], reading=ignoring)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.fromarray(np.full((5, 8, 3), value, np.uint8)) for value in (10, 200)]
    for name in ("a.gif", "a.webp", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True}))
        assert (read_image(tmp_path / name) == 10).all()
        assert read_image_header(tmp_path / name).animated


def test_png_bytes_may_be_named_jpg(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg", format="PNG")
    assert np.array_equal(read_image(tmp_path / "a.jpg"), PICTURE)


def test_transparency_is_dropped_and_the_colours_stay(tmp_path):
    alpha = np.dstack([PICTURE, RANDOM.integers(0, 256, (5, 8), dtype=np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), PICTURE)
    palette = Image.fromarray(PICTURE).quantize(16)
    palette.save(tmp_path / "p.png", transparency=bytes(range(16)))
    assert np.array_equal(read_image(tmp_path / "p.png"), np.array(palette.convert("RGB")))
    assert all(read_image_header(tmp_path / name).transparent for name in ("a.png", "p.png"))


@pytest.mark.filterwarnings("default")  # Pillow's own, on some of these
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif", "avif", "jp2", "ppm", "tga"])
def test_damaged_bytes_are_an_image_or_a_data_error(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.repeat(np.repeat(PICTURE, 8, 0), 8, 1)).save(path)
    whole = bytearray(path.read_bytes())
    for _ in range(150):
        content = whole[: RANDOM.integers(len(whole) // 2, len(whole))] if RANDOM.random() < 0.3 else whole.copy()
        for place in RANDOM.integers(0, len(content), 5):
            content[place] = RANDOM.integers(256)
        path.write_bytes(content)
        with contextlib.suppress(DataError):
            assert read_image(path).dtype == np.uint8


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_damaged_image_that_raises_another_error_than_usual_is_skipped_in_training(tmp_path):
    for name in "ab":
        Image.fromarray(PICTURE).save(tmp_path / f"{name}.avif", quality=100)
    content = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.avif").rename(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(content.replace(b"pitm", b"xxxx"))  # a RuntimeError of Pillow
    (tmp_path / "masks").mkdir()
    for name in "ab":
        write_mask(tmp_path / "masks" / f"{name}.png", np.ones((5, 8), np.uint8), create_palette(2))
    folders = tmp_path, tmp_path / "masks"
    with pytest.raises(DataError, match=r"a\.jpg is damaged or unreadable: Failed to decode image"):
        FolderSegmentation(*folders, class_names=("x", "y"), names=["a", "b"])
    data = FolderSegmentation(*folders, class_names=("x", "y"), names=["a", "b"], on_bad="skip")
    assert [item.file_name for item in data.items] == ["b.avif"]
    found = FolderSegmentation.inspect(*folders, class_names=("x", "y"), names=["a", "b"]).findings  # as check does
    assert [(finding.kind, finding.where) for finding in found] == [("unreadable-image", "a.jpg")]


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


def test_a_mask_with_labels_above_255_is_written_with_16_bits_or_refused(tmp_path):
    mask = np.array([[0, 255, 256, 299, 65535]], dtype=np.uint16)
    write_mask(tmp_path / "m.png", mask, create_palette(300))
    assert (tmp_path / "m.png").read_bytes()[24] == 16, "bit depth in the header of the PNG"
    assert np.array_equal(cv2.imread(str(tmp_path / "m.png"), cv2.IMREAD_UNCHANGED), mask)
    for wrong in (mask.astype(np.int64), np.array([[-1]])):
        with pytest.raises(UsageError, match="labels must be 0 to 255, or uint16"):
            write_mask(tmp_path / "n.png", wrong, create_palette(3))
    assert not (tmp_path / "n.png").exists()


def test_images_are_listed_recursively_in_order_without_hidden_ones(tmp_path):
    for name in ("b/2.JPG", "a.png", ".hidden/x.png", "b/1.jpeg", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == ["a.png", "b/1.jpeg", "b/2.JPG"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    for name in ("set/a.png", "elsewhere/b.gif", "elsewhere/deep/c.jfif"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "set/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere/deep/self").symlink_to(".")
    found = [path.relative_to(tmp_path / "set").as_posix() for path in list_images(tmp_path / "set")]
    assert found == ["a.png", "more/b.gif", "more/deep/c.jfif"]


def test_files_that_are_not_images_are_listed_too(tmp_path):
    for name in ("a.png", "b/2.psd", "notes.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert list_images(tmp_path) == [tmp_path / "a.png"]
    assert list_other_files(tmp_path) == [tmp_path / name for name in ("b/2.psd", "lost.jpg", "notes.txt")]


def test_an_image_survives_writing_and_reading(tmp_path):
    write_image(tmp_path / "a.png", PICTURE)
    assert np.array_equal(read_image(tmp_path / "a.png"), PICTURE)


def test_threads_that_write_one_file_leave_one_of_their_images(tmp_path, monkeypatch):
    both_are_written, replace = threading.Barrier(2, timeout=20), os.replace

    def replace_together(*paths):
        both_are_written.wait()
        replace(*paths)

    monkeypatch.setattr(os, "replace", replace_together)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write_image, [tmp_path / "a.png"] * 2, [PICTURE, PICTURE[::-1]]))
    assert any(np.array_equal(read_image(tmp_path / "a.png"), image) for image in (PICTURE, PICTURE[::-1]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_an_image_is_written_under_the_longest_name_that_a_file_can_have(tmp_path):
    path = tmp_path / ("x" * 251 + ".png")
    write_image(path, PICTURE)
    assert np.array_equal(read_image(path), PICTURE)
