import contextlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from segkit.data import DataError, FolderSegmentation
from segkit.data.findings import DataWarning
from segkit.data.palette import read_palette
from segkit.visualize import create_palette

NAMES = ("background", "square", "disc")
LABELS = np.array([[0, 1, 2, 255], [0, 1, 2, 255], [0, 0, 1, 1]], dtype=np.uint8)
PALETTE = "square 200 0 0\nbackground 0 0 0\ndisc 0 0 200\nignore 224 224 192\n"
COLOURS = {0: (0, 0, 0), 1: (200, 0, 0), 2: (0, 0, 200), 255: (224, 224, 192)}


def save_image(path, size=(3, 4), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, dtype=np.uint8)).save(path, **options)


def save_mask(path, values, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values))
    if palette is not None:
        image.putpalette(palette.tobytes())
    image.save(path)


def save_png(path, values, depth, colour):
    """Write a PNG of samples (H, W, channels) with `depth` bits each; Pillow cannot write such files."""
    bits = (np.asarray(values, dtype=np.uint16)[..., None] >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(len(bits), -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", bits.shape[1], len(bits), depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def coloured(labels):
    return np.array([[COLOURS[int(label)] for label in row] for row in labels], dtype=np.uint8)


def load(folder, masks=(LABELS,), **options):
    """Write images 0.jpg, 1.jpg ... with these masks, and open the folder."""
    for i, mask in enumerate(masks):
        save_image(folder / f"images/{i}.jpg")
        save_mask(folder / f"masks/{i}.png", mask)
    return FolderSegmentation(folder / "images", folder / "masks", **{"class_names": NAMES, **options})


def test_index_masks_with_and_without_colours_are_labels(tmp_path):
    for name in ("gray", "b/coloured"):
        save_image(tmp_path / f"images/{name}.jpg")
    save_mask(tmp_path / "masks/gray.png", LABELS)
    save_mask(tmp_path / "masks/b/coloured.png", LABELS, create_palette(3))
    data = FolderSegmentation(tmp_path / "images", tmp_path / "masks", class_names=NAMES)
    assert [data.name(i) for i in range(len(data))] == ["b/coloured.jpg", "gray.jpg"]
    assert [item.size for item in data.items] == [(3, 4), (3, 4)]
    for image, mask in data:
        assert (image.shape, image.dtype, mask.dtype) == ((3, 4, 3), np.uint8, np.uint8)
        assert np.array_equal(mask, LABELS)


@pytest.mark.parametrize("dtype", [np.uint16, bool])
def test_masks_of_other_depths_are_labels(tmp_path, dtype):
    values = (LABELS == 1).astype(dtype)
    assert np.array_equal(load(tmp_path, [values]).mask(0), LABELS == 1)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_gray_of_every_number_of_bits_holds_labels(tmp_path, depth):
    load(tmp_path)
    labels = np.array([[0, 1, 2, 3], [3, 0, 0, 2], [0, 1, 1, 1]], dtype=np.uint16) & (2**depth - 1)
    save_png(tmp_path / "masks/0.png", labels[..., None], depth, colour=0)
    data = FolderSegmentation(tmp_path / "images", tmp_path / "masks", class_names=[*NAMES, "ring"])
    assert np.array_equal(data.mask(0), labels)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_refused_as_labels(tmp_path, colour, channels):
    load(tmp_path)
    save_png(tmp_path / "masks/0.png", np.full((3, 4, channels), 2), 16, colour)
    with pytest.raises(DataError, match=r"the mask .*0\.png has colours of 16 bits"):
        load_again(tmp_path)


def test_gray_stored_as_rgb_is_still_an_index_mask(tmp_path):
    assert np.array_equal(load(tmp_path, [np.repeat(LABELS[..., None], 3, axis=2)]).mask(0), LABELS)


def test_a_file_of_class_names_has_one_in_each_line(tmp_path):
    (tmp_path / "names.txt").write_text("background\nsquare\n\ntraffic light\n", encoding="utf-8-sig")
    assert load(tmp_path, class_names=tmp_path / "names.txt").class_names == ("background", "square", "traffic light")


def test_a_list_of_names_selects_these_images(tmp_path):
    load(tmp_path, [LABELS] * 3)
    save_image(tmp_path / "images/unlabelled.jpg")
    (tmp_path / "train.txt").write_text("2\n0\n")
    for names in (tmp_path / "train.txt", ["2", "0"]):
        data = load(tmp_path, names=names)
        assert [data.name(i) for i in range(len(data))] == ["2.jpg", "0.jpg"]


def test_several_folders_are_one_set(tmp_path):
    for name in "ab":
        load(tmp_path / name, [LABELS] * 2)
    folders = [[tmp_path / name / kind for name in "ab"] for kind in ("images", "masks")]
    assert len(FolderSegmentation(*folders, class_names=NAMES)) == 4


def test_ignored_classes_and_the_transform_are_the_base_class_s(tmp_path):
    data = load(
        tmp_path, ignore_classes=["disc"], transform=lambda image, mask: {"image": image[::2], "mask": mask[::2]}
    )
    image, target = data[0]
    assert image.shape == (2, 4, 3)
    assert target[0].tolist() == [0, 1, 255, 255]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "# colours\n" + PALETTE),
        ("p.csv", "name,R,G,B\n" + PALETTE.replace(" ", ",")),
        ("p.json", '{"square": [200, 0, 0], "background": [0, 0, 0], "disc": [0, 0, 200], "ignore": [224, 224, 192]}'),
    ],
)
def test_a_palette_file_turns_colours_into_labels(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    data = load(tmp_path, [coloured(LABELS)], palette=tmp_path / name)
    assert np.array_equal(data.mask(0), LABELS)
    by_palette = load(tmp_path, [coloured(LABELS)], palette=tmp_path / name, class_names=None)
    assert by_palette.class_names == ("square", "background", "disc")
    assert np.array_equal(by_palette.mask(0), np.array([1, 0, 2, 255])[np.where(LABELS == 255, 3, LABELS)])


def test_black_and_white_masks_take_a_palette(tmp_path):
    (tmp_path / "p.txt").write_text("background 0 0 0\nlung left 255 255 255\n")
    data = load(tmp_path, [np.uint8(255 * (LABELS == 1))], palette=tmp_path / "p.txt", class_names=None)
    assert data.class_names == ("background", "lung left")
    assert np.array_equal(data.mask(0), LABELS == 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "square 200 0 0 255\nbackground 0 0 0 0\ndisc 0 0 200 255\n"),
        ("p.csv", "square,200,0,0,255\nbackground,0,0,0,255\ndisc,0,0,200,255\n"),
        ("p.csv", "name,r,g,b,a\nsquare,200,0,0,128\nbackground,0,0,0,0\ndisc,0,0,200,255\n"),
        ("p.json", '{"square": [200, 0, 0, 255], "background": [0, 0, 0, 255], "disc": [0, 0, 200, 255]}'),
    ],
)
def test_alpha_in_a_palette_file_is_dropped(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_palette(tmp_path / name) == {(200, 0, 0): "square", (0, 0, 0): "background", (0, 0, 200): "disc"}


def test_a_number_at_the_end_of_a_name_is_no_colour(tmp_path):
    (tmp_path / "p.txt").write_text("lane 1 255 0 0\nlane 2 0 0 255\n")
    assert read_palette(tmp_path / "p.txt") == {(255, 0, 0): "lane 1", (0, 0, 255): "lane 2"}
    (tmp_path / "p.txt").write_text("lane 1 255 0 0\nsky 0 0 255\n")
    assert read_palette(tmp_path / "p.txt") == {(255, 0, 0): "lane 1", (0, 0, 255): "sky"}


def test_a_transparent_palette_does_not_change_the_colours_of_a_mask(tmp_path):
    (tmp_path / "p.txt").write_text(PALETTE)
    load(tmp_path, [coloured(LABELS)], palette=tmp_path / "p.txt")
    mask = Image.fromarray(coloured(LABELS)).quantize(8)
    mask.save(tmp_path / "masks/0.png", transparency=bytes(8))  # all colours are invisible
    data = FolderSegmentation(tmp_path / "images", tmp_path / "masks", class_names=NAMES, palette=tmp_path / "p.txt")
    assert np.array_equal(data.mask(0), LABELS)


def test_gray_values_of_16_bits_are_no_colours(tmp_path):
    (tmp_path / "p.txt").write_text("background 0 0 0\nlung 255 255 255\n")
    with pytest.raises(DataError, match=r"0\.png has gray values of 16 or 32 bits, but the palette"):
        load(tmp_path, [LABELS.astype(np.uint16) * 257], palette=tmp_path / "p.txt", class_names=None)


def test_a_class_may_have_several_colours(tmp_path):
    (tmp_path / "p.txt").write_text("a 1 1 1\nb 2 2 2\na 3 3 3\n")
    assert read_palette(tmp_path / "p.txt") == {(1, 1, 1): "a", (2, 2, 2): "b", (3, 3, 3): "a"}


def test_a_turned_photograph_takes_a_mask_in_either_frame(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "images/0.jpg", (3, 4), exif=exif)
    for mask in (LABELS, LABELS.T):
        save_mask(tmp_path / "masks/0.png", mask)
        image, target = FolderSegmentation(tmp_path / "images", tmp_path / "masks", class_names=NAMES)[0]
        assert image.shape[:2] == target.shape == mask.shape


@pytest.mark.parametrize(
    ("size", "orientation", "kind"),
    [((3, 4), 6, "left-unturned"), ((4, 3), 6, "turned"), ((4, 4), 6, None), ((3, 4), 3, None)],
)
def test_an_orientation_is_noted_with_a_warning_if_no_size_proves_it(tmp_path, size, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    save_image(tmp_path / "images/0.jpg", size if kind is None else (3, 4), exif=exif)
    save_mask(tmp_path / "masks/0.png", np.zeros(size, dtype=np.uint8))
    with contextlib.nullcontext() if kind else pytest.warns(DataWarning, match=r"no size proves it.*0\.jpg"):
        data = load_again(tmp_path)
    assert [(note.kind, note.count) for note in data.notes] == [(kind or "turned-without-proof", 1)]


def test_conversions_of_an_image_are_noted(tmp_path):
    load(tmp_path)
    Image.new("LA", (4, 3)).save(tmp_path / "images/0.png")
    (tmp_path / "images/0.jpg").unlink()
    assert [note.kind for note in load_again(tmp_path).notes] == ["gray", "alpha"]


def test_an_image_without_a_mask_and_a_mask_without_an_image_are_named(tmp_path):
    load(tmp_path)
    save_image(tmp_path / "images/b/new.jpg")
    with pytest.raises(DataError, match=r"images/b/new\.jpg has no mask, expected at .*masks/b/new\.\*; `on_bad="):
        load(tmp_path)
    save_mask(tmp_path / "masks/b/new.png", LABELS)
    save_mask(tmp_path / "masks/old.png", LABELS)
    with pytest.raises(DataError, match=r"masks/old\.png has no image, expected at .*images/old\.\*"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"1 of 1 names have no image, such as .*images/gone\.\*"):
        load(tmp_path, names=["gone"])


@pytest.mark.parametrize("suffix", [".gif", ".ppm", ".tga", ".TIFF"])
def test_a_mask_of_every_lossless_format_is_found(tmp_path, suffix):
    load(tmp_path)
    (tmp_path / "masks/0.png").unlink()
    Image.fromarray(LABELS).save(tmp_path / f"masks/0{suffix}")
    assert np.array_equal(load_again(tmp_path).mask(0), LABELS)


def test_a_gif_in_colours_is_no_index_mask_because_its_writer_numbers_colours_anew(tmp_path):
    load(tmp_path)
    (tmp_path / "masks/0.png").unlink()
    save_mask(tmp_path / "masks/0.gif", LABELS, create_palette(3))
    with pytest.raises(DataError, match=r"0\.gif is a mask in colours; give a `palette`"):
        load_again(tmp_path)


def test_a_mask_of_a_format_that_is_not_read_is_named(tmp_path):
    load(tmp_path)
    (tmp_path / "masks/0.png").rename(tmp_path / "masks/0.npy")
    with pytest.raises(DataError, match=r"0\.jpg has no mask, .*; the format of .*masks/0\.npy is not read"):
        load_again(tmp_path)


def test_names_with_accents_match_however_they_are_written(tmp_path):
    save_image(tmp_path / "images/caf\u00e9.jpg")  # one character, as Linux and Windows write it
    save_mask(tmp_path / "masks/cafe\u0301.png", LABELS)  # e and an accent, as macOS writes it
    assert len(load_again(tmp_path)) == 1
    options = {"class_names": NAMES, "names": ["cafe\u0301"]}
    assert len(FolderSegmentation(tmp_path / "images", tmp_path / "masks", **options)) == 1


@pytest.mark.parametrize("name", ["b/new", "b\\new", "b/new.jpg", "b\\new.PNG"])
def test_a_list_of_names_may_have_backslashes_and_suffixes(tmp_path, name):
    save_image(tmp_path / "images/b/new.jpg")
    save_mask(tmp_path / "masks/b/new.png", LABELS)
    data = FolderSegmentation(tmp_path / "images", tmp_path / "masks", class_names=NAMES, names=[name])
    assert data.name(0) == "b/new.jpg"


def test_all_faults_are_reported_at_once(tmp_path):
    with pytest.raises(DataError) as raised:
        load(tmp_path, [LABELS[:1], LABELS[:2], LABELS + np.uint8(9), LABELS])
    for words in (
        "masks of another size than their image: 2",
        "0.png is 1 x 4",
        "1.png is 2 x 4",
        "2.png has the values 8, 9, 10, 11",
    ):
        assert words in str(raised.value)


def test_images_that_cannot_be_used_are_skipped_if_asked(tmp_path):
    save_image(tmp_path / "images/unlabelled.jpg")
    save_mask(tmp_path / "masks/old.png", LABELS)
    data = load(tmp_path, [LABELS, LABELS[:2]], on_bad="skip", max_bad=0.7)
    assert [data.name(i) for i in range(len(data))] == ["0.jpg"]
    assert {finding.kind for finding in data.findings} == {"no-mask", "no-image", "mask-size"}
    assert [note.count for note in data.notes] == [1, 1, 1]
    with pytest.raises(DataError, match=r"2 of 3 images cannot be used, more than `max_bad=0\.01`"):
        load(tmp_path, [LABELS, LABELS[:2]], on_bad="skip")
    with pytest.raises(DataError, match="has the values 9"):
        load(tmp_path, [LABELS * 0 + np.uint8(9)], on_bad="skip")
    with pytest.raises(ValueError, match="unknown `on_bad` 'ignore'"):
        load(tmp_path, on_bad="ignore")


@pytest.mark.parametrize("text", ["# classes\n{}", "\n{}\n# end"])
def test_comments_in_a_file_of_class_names_are_no_classes(tmp_path, text):
    (tmp_path / "names.txt").write_text(text.format("\n".join(NAMES)))
    assert load(tmp_path, class_names=tmp_path / "names.txt").class_names == NAMES


@pytest.mark.parametrize("lines", ["1 wall,2 door,3 sky", "1: wall,2: door", "7:road,8:sidewalk,11:building"])
def test_class_names_that_are_numbered_unlike_the_pixel_values_are_an_error(tmp_path, lines):
    (tmp_path / "names.txt").write_text(lines.replace(",", "\n"))
    with pytest.raises(DataError, match=r"names.txt numbers the classes (1, 2|7, 8).*the pixel values from 0 on"):
        load(tmp_path, class_names=tmp_path / "names.txt")


@pytest.mark.parametrize("lines", ["0: wall,1: door,2: sky", "1 euro,2 euro,5 cent", "1 euro,2 euro", "2d,3d,4d"])
def test_class_names_may_begin_with_a_number(tmp_path, lines):
    (tmp_path / "names.txt").write_text(lines.replace(",", "\n"))
    data = load(tmp_path, [LABELS % 255 % 2], class_names=tmp_path / "names.txt")
    assert data.class_names == tuple(lines.split(","))


def test_a_file_that_comes_twice_is_warned_of(tmp_path):
    save_image(tmp_path / "images/a/0.jpg")
    save_mask(tmp_path / "masks/a/0.png", LABELS)
    images, masks = [tmp_path / "images", tmp_path / "images/a"], [tmp_path / "masks", tmp_path / "masks/a"]
    with pytest.warns(DataWarning, match="files that are listed as several images"):
        assert len(FolderSegmentation(images, masks, class_names=NAMES)) == 2


def test_two_images_with_the_same_name_are_an_error(tmp_path):
    load(tmp_path)
    save_image(tmp_path / "images/0.png")
    with pytest.raises(DataError, match=r"0\.(jpg|png) and .*0\.(jpg|png) have the same name"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (LABELS[:2], r"mask .*0\.png is 2 x 4 pixels .* image .*0\.jpg is 3 x 4"),
        (
            np.where(LABELS == 2, 7, LABELS),
            r"0\.png has the values 7, but the 3 classes are 0 to 2, and 255 is ignored$",
        ),
        (np.uint16(LABELS) * 250, r"0\.png has the values 250, 500, 63750"),
        (coloured(LABELS), r"0\.png is a mask in colours; give a `palette`"),
        (np.uint8(255 * (LABELS == 1)), r"masks.* have no values except 0 and 255.* 'NAME 255 255 255'"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(tmp_path, mask, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, [mask])


@pytest.mark.parametrize("mask", [np.uint8(255 * (LABELS == 1)), np.full((3, 4), 255, np.uint8)])
def test_masks_without_a_label_besides_0_and_255_are_an_error(tmp_path, mask):
    with pytest.raises(DataError, match=r"masks.* have no values except 0 and 255"):
        load(tmp_path, [mask], class_names=NAMES[:2])


@pytest.mark.parametrize("label", [0, 2])
def test_masks_of_one_label_are_warned_of(tmp_path, label):
    """Such as black pictures, which a training would learn to be background."""
    with pytest.warns(DataWarning, match="folders of masks that have only one class") as caught:
        data = load(tmp_path, [np.full((3, 4), label, np.uint8)] * 5)
    assert len(caught) == 1
    assert data.findings[0].sentence.endswith(f"have no class except {NAMES[label]}")


@pytest.mark.parametrize(
    "options",
    [{"class_names": ["water"]}, {"class_names": None, "palette": "p.txt"}],
    ids=["names", "palette"],
)
def test_a_single_class_leaves_nothing_to_learn(tmp_path, options, monkeypatch):
    """A loss of 0 and a mIoU of 100 % for any model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("water 255 255 255\nignore 0 0 0\n")
    with pytest.raises(DataError, match=r"'water' is the only class, .* water for 1; if 255 is white"):
        load(tmp_path, [np.uint8(255 * (LABELS == 1))], **options)


def test_a_soft_black_and_white_mask_is_named_with_a_hint(tmp_path):
    with pytest.raises(DataError, match=r"0\.png has the values 100, 180, but the 2 classes .* 'NAME 255 255 255'"):
        load(tmp_path, [np.uint8([[0, 100, 180, 255]] * 3)], class_names=NAMES[:2])


def test_an_empty_mask_with_ignored_pixels_is_no_binary_one_while_another_has_a_class(tmp_path):
    assert len(load(tmp_path, [LABELS, np.uint8(255 * (LABELS == 1))])) == 2


def test_a_colour_outside_the_palette_is_named(tmp_path):
    (tmp_path / "p.txt").write_text(PALETTE)
    picture = coloured(LABELS)
    picture[0, 0] = (9, 8, 7)
    with pytest.raises(DataError, match=r"0\.png has colours that are not in the palette: \(9, 8, 7\)$"):
        load(tmp_path, [picture], palette=tmp_path / "p.txt")


def test_a_mask_that_is_lossy_or_damaged_is_named(tmp_path):
    load(tmp_path)
    (tmp_path / "masks/0.png").write_bytes((tmp_path / "masks/0.png").read_bytes()[:45])
    with pytest.raises(DataError, match=r"masks/0\.png is damaged"):
        load_again(tmp_path)
    save_image(tmp_path / "masks/0.jpg")
    (tmp_path / "masks/0.png").unlink()
    with pytest.raises(DataError, match=r"masks/0\.jpg is a JPEG"):
        load_again(tmp_path)
    (tmp_path / "masks/0.jpg").unlink()
    image = Image.fromarray(np.repeat(LABELS[..., None], 3, axis=2))
    for suffix in ("webp", "jp2"):
        image.save(tmp_path / f"masks/0.{suffix}")
        with pytest.raises(DataError, match=rf"0\.{suffix} is a (WEBP|JPEG2000), and its compression changes labels"):
            load_again(tmp_path)
        (tmp_path / f"masks/0.{suffix}").unlink()
    image.save(tmp_path / "masks/0.webp", lossless=True)
    assert np.array_equal(load_again(tmp_path).mask(0), LABELS)


@pytest.mark.parametrize("kind", ["P2", "P5"])
@pytest.mark.parametrize("white", [2, 255, 300])
def test_labels_of_a_pgm_are_its_values_whichever_value_is_white(tmp_path, kind, white):
    load(tmp_path)
    (tmp_path / "masks/0.png").unlink()
    labels = np.array([[0, 1, 2, 0], [2, 1, 0, 2], [0, 0, 1, 1]], dtype=np.uint16)
    content = labels.astype(">u2" if white > 255 else np.uint8).tobytes()
    if kind == "P2":  # as text
        content = " ".join(map(str, labels.ravel())).encode()
    (tmp_path / "masks/0.pgm").write_bytes(b"%s 4 3 %d\n" % (kind.encode(), white) + content)
    assert np.array_equal(load_again(tmp_path).mask(0), labels)


def test_a_mask_may_have_a_preview(tmp_path):
    load(tmp_path)
    (tmp_path / "masks/0.png").unlink()
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "masks/0.tif"), new=True) as pages:
        Image.fromarray(LABELS).save(pages, format="TIFF")
        pages.newFrame()
        Image.fromarray(LABELS[:1, :2]).save(pages, format="TIFF", tiffinfo={254: 1})
    assert np.array_equal(load_again(tmp_path).mask(0), LABELS)


def test_a_mask_of_several_pages_is_refused(tmp_path):
    load(tmp_path)
    (tmp_path / "masks/0.png").unlink()
    Image.fromarray(LABELS).save(tmp_path / "masks/0.tif", save_all=True, append_images=[Image.fromarray(LABELS)])
    with pytest.raises(DataError, match=r"0\.tif has several pages or frames; give one label map in each file"):
        load_again(tmp_path)


def load_again(folder):
    return FolderSegmentation(folder / "images", folder / "masks", class_names=NAMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": None}, r"`class_names` or a `palette`"),
        ({"class_names": ["a", "a"]}, "all different, got 2: a, a"),
        ({"class_names": "nowhere.txt"}, r"no file of class names at nowhere\.txt"),
        ({"palette": "nowhere.txt"}, r"no palette file at nowhere\.txt"),
    ],
)
def test_missing_or_wrong_settings_are_named(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "", r"p\.txt has no colours"),
        ("p.txt", "car 0 0", r"p\.txt: expected a name and its red.* got '' car 0 0"),
        ("p.txt", "car 0 0 300", "from 0 to 255, got 'car' 0 0 300"),
        ("p.txt", "car 0 0 1\nbus 0 0 1", r"the colour \(0, 0, 1\) for both 'car' and 'bus'"),
        ("p.txt", "car 0 0 1", r"p\.txt has colours for car, which are not class names"),
        ("p.json", "[1]", r"p\.json is not a palette: expected \{"),
        ("p.json", "{", r"p\.json is not valid JSON"),
        pytest.param("p.json", "[" * 100_000, r"p\.json cannot be read: .* nested too deeply", id="nested"),
        ("p.json", '{"car": 3}', "got 'car' 3"),
    ],
)
def test_a_wrong_palette_file_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path, palette=tmp_path / name)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match="images is not a folder, expected the folder of the images"):
        load(tmp_path, [])
