"""Odd and faulty COCO files and photographs: a right mask, or a sentence that names the fault."""

import contextlib
import json
import warnings

import numpy as np
import pytest
from helpers.shapes import CATEGORIES, rectangle
from PIL import Image

from segkit.data import CocoSegmentation, DataError
from segkit.data.coco_file import read_coco
from segkit.data.findings import DataWarning
from segkit.folds.files import read_fold_source

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
WHOLE = {"size": [20, 30], "counts": [0, 600]}


def image(i=1, file_name="a.png", **more):
    return {"id": i, "file_name": file_name, "height": 20, "width": 30, **more}


def annotation(segmentation=WHOLE, i=5, **more):
    return {"id": i, "image_id": 1, "category_id": 3, "segmentation": segmentation, **more}


@pytest.fixture
def write(tmp_path):
    """Write pictures and a JSON; returns the JSON."""

    def write(annotations=(), images=None, picture="a.png", categories=CATEGORIES):
        Image.fromarray(PICTURE).save(tmp_path / picture)
        content = {"images": images or [image(file_name=picture)], "annotations": list(annotations)}
        (tmp_path / "x.json").write_text(json.dumps(content | {"categories": categories}))
        return tmp_path / "x.json"

    return write


@contextlib.contextmanager
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def notes_of(file, **options):
    return {note.kind: note.count for note in CocoSegmentation(file, **options).notes}


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([["a", 1, 2, 3, 4, 5]], "'a' is not a coordinate"),
        ([[1, 2, 3, 4, None, 5]], "None is not a coordinate"),
        ([[1, 2, 3, 4, True, 5]], "True is not a coordinate"),
        ([[1, 2, 3, 4, float("nan"), 5]], "nan is not a coordinate"),
        ([[1, 2, 3, 4, float("inf"), 5]], "inf is not a coordinate"),
        ([[1, 2, 3, 4, 1e12, 5]], "1e.12 is not a coordinate"),
        ([1, 2, 3, 4, 5, 6], r"write it as \[\[x, y"),
        ([[1, 2], [9, 2], [9, 9]], r"got a list of points; write it as \[\[x, y"),
        (["1 2 3"], "expected a polygon as a list of numbers, got '1 2 3'"),
        ("polygon", "expected polygons or RLE, got str"),
        ({"counts": [600]}, "its RLE has no 'size'"),
        ({"size": [20, 30]}, "its RLE has no 'counts'"),
        ({"size": [30, 20], "counts": [600]}, r"its RLE is of size \[30, 20\], the image is \[20, 30\].* look swapped"),
        ({"size": [30, 30], "counts": [900]}, r"its RLE is of size \[30, 30\], the image is .* width\)$"),
        ({"size": [20, 30], "counts": [599]}, "come to 599 pixels, the image has 600"),
        ({"size": [20, 30], "counts": [100, 501]}, "come to 601 pixels"),
        ({"size": [20, 30], "counts": [-1, 601]}, "whole numbers, 0 or more"),
        ({"size": [20, 30], "counts": [0.5, 599.5]}, "whole numbers, 0 or more"),
        ({"size": [20, 30], "counts": "1"}, "come to 1 pixels"),
        ({"size": [20, 30], "counts": "\u00e9"}, "a list or a string"),
        ({"size": [20, 30], "counts": "\n"}, "not a compressed RLE"),
        ({"size": [20, 30], "counts": None}, "a list or a string"),
    ],
)
def test_a_damaged_segmentation_is_an_error_that_names_its_annotation(write, segmentation, message):
    with pytest.raises(DataError, match=rf"annotation 5 of a\.png has a segmentation that cannot be read: .*{message}"):
        CocoSegmentation(write([annotation(segmentation)]))


PAINTING_NOTHING = [
    ([], "no-segmentation"),
    (None, "no-segmentation"),
    ([[]], "short-polygon"),
    ([[1, 2]], "short-polygon"),
    ([[1, 2, 9, 9]], "short-polygon"),
    ([[40, 5, 50, 5, 45, 9]], "outside-polygon"),
    ([[-9, -9, -1, -9, -1, -1]], "outside-polygon"),
]


@pytest.mark.parametrize(("segmentation", "kind"), PAINTING_NOTHING)
def test_a_segmentation_that_paints_nothing_is_counted(write, segmentation, kind):
    file = write([annotation(segmentation), annotation([rectangle(0, 0, 5, 5)], 6)])
    is_warning = kind == "no-segmentation"
    with pytest.warns(DataWarning, match="`bbox_as_mask` paints") if is_warning else contextlib.nullcontext():
        data = CocoSegmentation(file)
    assert data.mask(0).sum() == 25
    (note,) = data.notes
    assert (note.kind, note.count, note.severity) == (kind, 1, "warning" if is_warning else "note")
    assert note.examples == ("annotation 5 of a.png",)


@pytest.mark.parametrize("segmentation", [segmentation for segmentation, _ in PAINTING_NOTHING])
def test_a_file_whose_annotations_all_paint_nothing_is_an_error(write, segmentation):
    """Such as an export for detection: a training would learn that all is background."""
    file = write([annotation(segmentation, i, bbox=[2, 3, 10, 4]) for i in (5, 6)])
    with pytest.raises(DataError, match=r"none of 2 annotations in .*x\.json paints a class; .*`bbox_as_mask`"):
        CocoSegmentation(file)
    if not segmentation:
        assert CocoSegmentation(file, bbox_as_mask=True).mask(0).sum() == 40


UNIT = [[0.25, 0.5, 0.75, 0.5, 0.75, 1, 0.25, 1]]  # the corners of a rectangle as shares of the image


@pytest.mark.parametrize("keys", [{}, {"segmentation": None, "bbox": [0.25, 0.5, 0.5, 0.5]}])
def test_coordinates_in_0_to_1_are_an_error_in_training_and_in_folds(write, keys):
    file = write([annotation(UNIT, i) | keys for i in (5, 6)])
    message = r"all polygons in .*x\.json have coordinates in 0\.\.1, expected pixels; multiply each x by the width"
    with pytest.raises(DataError, match=message):
        CocoSegmentation(file, bbox_as_mask=bool(keys))
    if not keys:
        with pytest.raises(DataError, match=message):
            read_fold_source(file)


def test_annotations_of_background_only_are_an_error(write):
    file = write([annotation(category_id=1)], categories=[*CATEGORIES, {"id": 1, "name": "Background"}])
    with pytest.raises(DataError, match=r"none of 1 annotation in .* paints a class"):
        CocoSegmentation(file)


@pytest.mark.parametrize(("beyond", "within"), [(6, 5), (6, 6), (5, 0)])
def test_polygons_of_an_image_of_another_size_are_warned_of(write, beyond, within):
    rows = [annotation([rectangle(25, 5, 40, 5)], i) for i in range(beyond)]
    file = write([*rows, *(annotation([rectangle(0, 0, 5, 5)], 20 + i) for i in range(within))])
    is_warned = beyond > 5 and beyond > within
    with pytest.warns(DataWarning, match="as if they were drawn at another size") if is_warned else no_warning():
        CocoSegmentation(file)


def test_single_annotations_in_0_to_1_are_warned_of(write):
    file = write([annotation(UNIT), annotation([rectangle(0, 0, 5, 5)], 6), annotation(i=7)])
    with pytest.warns(DataWarning, match=r"all coordinates in 0\.\.1, less than a pixel: 1 \(annotation 5 of a\.png\)"):
        CocoSegmentation(file)


def test_a_box_is_painted_if_asked_and_if_there_is_no_segmentation(write, tmp_path):
    file = write([annotation(None, bbox=[2, 3, 10, 4]), annotation([rectangle(20, 0, 5, 5)], 6, bbox=[0, 0, 30, 20])])
    cache = tmp_path / "cache"
    assert CocoSegmentation(file, mask_cache=cache).target(0).sum() == 25
    data = CocoSegmentation(file, bbox_as_mask=True, mask_cache=cache)
    expected = np.zeros((20, 30), dtype=np.uint8)
    expected[3:7, 2:12] = expected[:5, 20:25] = 1
    assert np.array_equal(data.target(0), expected)
    assert [note.kind for note in data.notes] == ["box-as-mask"]
    with pytest.raises(DataError, match=r"annotation 5 .*bbox must be \[x, y, width, height\]"):
        CocoSegmentation(write([annotation(None, bbox=[1, 2])]), bbox_as_mask=True)


@pytest.mark.parametrize("kind", ["polygon", "rle"])
def test_annotations_are_fitted_to_an_image_of_another_size_when_asked(write, kind):
    """The annotations were drawn at 40 x 90, but the file has 20 x 30: half the height, a third of the width."""
    drawn = np.zeros((40, 90), dtype=np.uint8)
    drawn[10:30, 30:60] = 1
    runs = np.flatnonzero(np.diff(drawn.ravel(order="F"), prepend=0, append=0))
    counts = np.diff([0, *runs.tolist(), drawn.size]).tolist()
    shape = [rectangle(30, 10, 30, 20)] if kind == "polygon" else {"size": [40, 90], "counts": counts}
    file = write([annotation(shape)], [image(height=40, width=90)])
    with pytest.raises(DataError, match=r"a\.png is 20 x 30 .* say 40 x 90; .*`rescale_annotations`"):
        CocoSegmentation(file)
    data = CocoSegmentation(file, rescale_annotations=True)
    expected = np.zeros((20, 30), dtype=np.uint8)
    expected[5:15, 10:20] = 1
    assert np.array_equal(data.mask(0), expected)
    assert data[0][0].shape == (20, 30, 3)
    assert [note.kind for note in data.notes] == ["rescaled"]


@pytest.mark.parametrize(
    ("drawn", "size", "kind"),
    [((10, 15), (20, 30), "left-unturned"), ((15, 10), (30, 20), "turned"), ((15, 15), (30, 20), None)],
)
def test_annotations_of_another_size_are_fitted_in_the_frame_that_lies_as_they_do(tmp_path, write, drawn, size, kind):
    height, width = drawn
    half = annotation([rectangle(0, 0, width, 5)])
    file = write([half], [image(file_name="t.png", height=height, width=width)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(tmp_path / "t.png", exif=exif)
    with contextlib.nullcontext() if kind else pytest.warns(DataWarning, match="no size proves it"):
        data = CocoSegmentation(file, rescale_annotations=True)
    picture, mask = data[0]
    assert picture.shape[:2] == mask.shape == size
    assert np.array_equal(mask.any(1), np.arange(size[0]) < 5 * size[0] // height)
    assert [note.kind for note in data.notes if note.kind != "rescaled"] == [kind or "turned-without-proof"]


def test_rle_of_a_gigantic_size_is_not_decoded(write):
    shape = {"size": [40_000, 90_000], "counts": [2**31 - 1, 40_000 * 90_000 - 2**31 + 1]}
    file = write([annotation(shape)], [image(height=40_000, width=90_000)])
    with pytest.raises(DataError, match="RLE of 40000 x 90000 pixels is too large to be scaled"):
        CocoSegmentation(file, rescale_annotations=True)


@pytest.mark.parametrize("drawn", [(40, 30), (30, 30)])
def test_an_upright_image_takes_annotations_of_any_other_shape_when_asked(write, drawn):
    file = write([annotation([rectangle(0, 0, drawn[1], drawn[0])])], [image(height=drawn[0], width=drawn[1])])
    data = CocoSegmentation(file, rescale_annotations=True)
    assert (data.mask(0) == 1).all()
    assert [note.kind for note in data.notes] == ["rescaled"]


def test_more_bad_images_than_allowed_are_an_error_and_one_is_always_allowed(write):
    images = [image(), *(image(i, f"missing{i}.png") for i in range(2, 5))]
    assert len(CocoSegmentation(write(images=images[:2]), on_bad="skip")) == 1
    with pytest.raises(DataError, match=r"3 of 4 images cannot be used, more than `max_bad=0\.5`(.|\n)*missing2"):
        CocoSegmentation(write(images=images), on_bad="skip", max_bad=0.5)
    assert len(CocoSegmentation(write(images=images), on_bad="skip", max_bad=0.75)) == 1


def test_a_missing_segmentation_paints_nothing_even_with_a_box(write):
    row = {"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2, 9, 9]}
    with pytest.warns(DataWarning, match="annotations without a segmentation"):
        data = CocoSegmentation(write([row, annotation([rectangle(20, 0, 5, 5)], 6)]))
    assert data.mask(0).sum() == 25
    assert [note.kind for note in data.notes] == ["no-segmentation"]


def test_a_polygon_beyond_the_border_is_cut_and_counted(write):
    data = CocoSegmentation(write([annotation([rectangle(25, 15, 50, 50)])]))
    assert data.mask(0).sum() == 25
    assert [note.kind for note in data.notes] == ["cut-polygon"]


def test_an_odd_number_of_coordinates_is_skipped_with_a_warning_and_the_other_parts_stay(write):
    with pytest.warns(DataWarning, match=r"odd number of coordinates, skipped: 1 \(annotation 5 of a\.png\)"):
        data = CocoSegmentation(write([annotation([[1, 1, 9, 1, 9], rectangle(0, 0, 5, 5)])]))
    assert data.mask(0).sum() == 25


def test_neither_area_nor_box_is_needed_and_wrong_ones_do_not_matter(write):
    wrong = annotation([rectangle(0, 0, 5, 5)], area=0, bbox=[0, 0, 0, 0])
    assert CocoSegmentation(write([wrong])).mask(0).sum() == 25


def test_compressed_counts_may_be_bytes():
    from segkit.data.segmentation import read_segmentation

    for counts in ("0hb0", b"0hb0", [0, 600]):
        shape, kinds = read_segmentation({"size": [20, 30], "counts": counts}, (20, 30))
        assert (shape, kinds) == (b"0hb0", [])


@pytest.mark.parametrize("missing", [{"height": None}, {"width": 0}, {"height": None, "width": None}])
def test_a_size_that_the_json_lacks_is_read_from_the_file(write, missing):
    file = write([annotation([rectangle(0, 0, 5, 5)])], [image(**missing)])
    data = CocoSegmentation(file)
    assert data.items[0].size == (20, 30)
    assert data.mask(0).sum() == 25
    assert notes_of(file) == {"size-from-file": 1}


@pytest.mark.parametrize("drawn", [(30, 20), (60, 40), (301, 200)])
@pytest.mark.parametrize("rescale", [False, True])
def test_swapped_height_and_width_are_told_as_such_and_never_rescaled(write, drawn, rescale):
    file = write([annotation([rectangle(20, 0, 5, 5)])], [image(height=drawn[0], width=drawn[1])])
    with pytest.raises(DataError, match=r"a\.png is 20 x 30 .* look swapped in the JSON; exchange `height`") as raised:
        CocoSegmentation(file, rescale_annotations=rescale)
    assert "rescale_annotations" not in str(raised.value)


@pytest.mark.parametrize("rescale", [False, True])
def test_the_size_after_a_turn_that_is_not_applied_is_told_as_such(tmp_path, write, rescale):
    file = write([annotation([rectangle(0, 0, 5, 5)])], [image(file_name="t.png", height=30, width=20)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(tmp_path / "t.png", exif=exif)
    with pytest.raises(DataError, match=r't\.png is 20 x 30 .* EXIF orientation; `exif="apply"` rotates them'):
        CocoSegmentation(file, exif="ignore", rescale_annotations=rescale)


@pytest.mark.parametrize("drawn", [(30, 21), (20, 31), (25, 25), (30, 40)])
def test_other_sizes_do_not_look_swapped(write, drawn):
    data = CocoSegmentation(
        write([annotation([[0, 0, 9, 0, 9, 9]])], [image(height=drawn[0], width=drawn[1])]), rescale_annotations=True
    )
    assert [note.kind for note in data.notes] == ["rescaled"]


def test_another_size_than_the_files_is_an_error_with_both(write):
    with pytest.raises(DataError, match=r"a\.png is 20 x 30 pixels .* say 30 x 40"):
        CocoSegmentation(write(images=[image(height=30, width=40)]))
    with pytest.raises(DataError, match="in the JSON, expected numbers"):
        CocoSegmentation(write(images=[image(height="tall")]))


@pytest.mark.parametrize(
    ("frame", "kind"), [((30, 20), "turned"), ((20, 30), "left-unturned"), ((None, None), "turned-without-proof")]
)
def test_exif_orientation_follows_the_frame_that_the_annotations_were_drawn_in(tmp_path, write, frame, kind):
    file = write(images=[image(file_name="t.jpg", height=frame[0], width=frame[1])])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(tmp_path / "t.jpg", exif=exif)
    with pytest.warns(DataWarning) if kind == "turned-without-proof" else contextlib.nullcontext():
        data = CocoSegmentation(file)
    picture, mask = data[0]
    assert picture.shape[:2] == mask.shape == ((20, 30) if kind == "left-unturned" else (30, 20))
    assert {note.kind: note.count for note in data.notes}[kind] == 1


def test_a_square_image_is_turned_with_a_warning_unless_orientations_are_ignored(tmp_path, write):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE[:, :20]).save(tmp_path / "t.png", exif=exif)
    file = write(images=[image(file_name="t.png", width=20)])
    with pytest.warns(DataWarning, match="no size proves it.*exif=.ignore"):
        data = CocoSegmentation(file)
    assert np.array_equal(data[0][0], np.rot90(PICTURE[:, :20], -1))
    ignoring = CocoSegmentation(file, exif="ignore")
    assert np.array_equal(ignoring[0][0], PICTURE[:, :20])
    assert [note.kind for note in ignoring.notes] == ["exif-ignored", "no-annotations"]


@pytest.mark.parametrize(
    ("mode", "suffix", "kind"),
    [
        ("L", "png", "gray"),
        ("1", "png", "gray"),
        ("RGBA", "png", "alpha"),
        ("LA", "png", "alpha"),
        ("CMYK", "jpg", "cmyk"),
        ("I;16", "png", "16-bit"),
        ("F", "tif", "32-bit"),
        ("P", "png", None),
    ],
)
def test_every_kind_of_image_is_read_as_rgb_and_counted(tmp_path, write, mode, suffix, kind):
    sixteen = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)
    picture = sixteen if mode == "I;16" else Image.fromarray(PICTURE).convert(mode)
    picture.save(tmp_path / f"m.{suffix}")
    file = write([annotation()], [image(file_name=f"m.{suffix}")])
    read = CocoSegmentation(file)[0][0]
    assert (read.shape, read.dtype) == ((20, 30, 3), np.uint8)
    if mode in ("L", "I;16"):
        expected = np.asarray(picture.convert("L")) if mode == "L" else PICTURE[..., 0]
        assert np.array_equal(read[..., 1], expected)
    assert (notes_of(file).get(kind) == 1) if kind else not notes_of(file)


def test_names_from_another_system_find_their_images_with_a_warning(tmp_path, write):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    for name in ("A.PNG", "D:\\photos\\a.png"):
        file = write([annotation()], [image(file_name=name)])
        with pytest.warns(DataWarning, match="names are spelt in another way"):
            data = CocoSegmentation(file)
        assert np.array_equal(data[0][0], PICTURE)
    file = write([annotation(), annotation(i=6, image_id=2)], [image(file_name="/x/a.png"), image(2, "/y/a.png")])
    with pytest.raises(DataError, match=r"no image at /x/a\.png; the folder has a\.png, but another image"):
        CocoSegmentation(file)
    file = write([annotation()], [image(file_name="train/a.png")])
    with pytest.raises(DataError, match=r"no image at .*train/a\.png; the folder has a\.png"):
        CocoSegmentation(file)


@pytest.mark.parametrize("name", ["f.gif", "f.tif"])
def test_only_the_first_page_is_used_with_a_warning(tmp_path, write, name):
    frames = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    file = write([annotation()], [image(file_name=name)])
    with pytest.warns(DataWarning, match=rf"several pages or frames, of which only the first is used: 1 \({name}\)"):
        data = CocoSegmentation(file)
    assert (data[0][0] == 10).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "it is empty"), (b"<!DOCTYPE html>", "it starts with '<!DOCTYP'"), (b"\x89PNG\r\n\x1a\n", "a.png")],
)
def test_a_file_that_is_no_image_is_an_error_or_skipped(tmp_path, write, content, message):
    file = write([annotation(), annotation(i=6, image_id=2)], [image(), image(2, "b.png")])
    Image.fromarray(PICTURE).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=message):
        CocoSegmentation(file)
    data = CocoSegmentation(file, on_bad="skip")
    assert [item.file_name for item in data.items] == ["b.png"]
    assert data.target(0).all()
    assert [str(note) for note in data.notes] == ["images that cannot be read: 1 (a.png)"]


def test_missing_images_are_one_error_with_the_first_twenty_and_the_count(write):
    file = write(images=[image(i, f"gone{i}.png") for i in range(25)])
    with pytest.raises(DataError) as raised:
        CocoSegmentation(file)
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("missing images: 25; file names start from `images` (`root` of a data set)")
    assert [line.rsplit("/", 1)[1] for line in lines[1:21]] == [f"gone{i}.png" for i in range(20)]
    assert lines[21:] == ["  and 5 more"]


def test_skipped_images_leave_the_cache_of_the_others_right(tmp_path, write):
    rows = [annotation(image_id=2), annotation([rectangle(0, 0, 5, 5)], 6, image_id=1, category_id=7)]
    file = write(rows, [image(2, "b.png"), image(1)])
    cache = tmp_path / "cache"
    assert CocoSegmentation(file, on_bad="skip", max_bad=0.5, mask_cache=cache).target(0).sum() == 50
    Image.fromarray(PICTURE).save(tmp_path / "b.png")
    assert CocoSegmentation(file, on_bad="skip", max_bad=0.5, mask_cache=cache).target(0).sum() == 600


def test_more_classes_than_a_mask_of_8_bits_holds_are_refused(tmp_path, write):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    file = write([annotation()], [image()])
    names = [*CocoSegmentation(file).class_names[1:], *(f"class {i}" for i in range(253))]
    assert len(CocoSegmentation(file, class_names=names[:254]).class_names) == 255
    with pytest.raises(DataError, match=r"cannot be read for 255 classes besides background, the most are 254"):
        CocoSegmentation(file, class_names=names)


@pytest.mark.parametrize("name", ["../b.png", "sub/../../b.png", "/etc/passwd", "C:\\b.png", "link.png"])
def test_a_path_out_of_the_image_folder_is_an_error(tmp_path, write, name):
    Image.fromarray(PICTURE).save(tmp_path / "b.png")
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / "link.png").symlink_to(tmp_path / "b.png")
    file = write(images=[image(file_name=name)])
    with pytest.raises(DataError, match=r"outside the image folder.*allow_outside_root"):
        CocoSegmentation(file, root=root)


@pytest.mark.parametrize("other", ["a.png", "C:/e/a.png", "/data/a.png"])
def test_a_path_of_another_machine_that_means_the_file_of_another_image_is_told_as_such(tmp_path, write, other):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    file = write(images=[image(file_name="C:\\d\\a.png"), image(id=2, file_name=other)])
    with pytest.raises(DataError, match=r"there is no image at .*the folder has a\.png, but another") as raised:
        CocoSegmentation(file, root=tmp_path)
    assert "allow_outside_root" not in str(raised.value)


@pytest.mark.parametrize("name", ["../b.png", "link.png", "ABSOLUTE"])
def test_paths_out_of_the_image_folder_may_be_allowed(tmp_path, write, name):
    Image.fromarray(PICTURE).save(tmp_path / "b.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/link.png").symlink_to(tmp_path / "b.png")
    file = write(images=[image(file_name=str(tmp_path / "b.png") if name == "ABSOLUTE" else name)])
    data = CocoSegmentation(file, root=tmp_path / "images", allow_outside_root=True)
    assert np.array_equal(data.image(0), PICTURE)


def test_links_within_the_image_folder_and_to_it_are_no_fault(tmp_path, write):
    (tmp_path / "images").mkdir()
    Image.fromarray(PICTURE).save(tmp_path / "images/b.png")
    (tmp_path / "images/link.png").symlink_to("b.png")
    (tmp_path / "to_images").symlink_to("images")
    assert len(CocoSegmentation(write(images=[image(file_name="link.png")]), root=tmp_path / "to_images")) == 1


def test_a_name_that_no_file_can_have_is_an_error(write):
    with pytest.raises(DataError, match=r"'a\\x00\.png' cannot be the name of a file"):
        CocoSegmentation(write(images=[image(file_name="a\0.png")]))


def test_an_address_on_the_network_is_an_error_and_asks_no_network(write, no_network):
    with pytest.raises(DataError, match=r"https://x\.org/a\.png is a network address"):
        CocoSegmentation(write(images=[image(file_name="https://x.org/a.png")]), allow_outside_root=True)


@pytest.mark.parametrize("name", ["a b.png", "\u00e4\u00f6\u6f22\U0001f600.png", "x" * 200 + ".png"])
def test_names_with_spaces_other_scripts_and_great_length_work(write, name):
    assert np.array_equal(CocoSegmentation(write(picture=name)).image(0), PICTURE)


def test_duplicate_image_ids_are_an_error(write):
    with pytest.raises(DataError, match=r"two images with the same id 1: a\.png and b\.png"):
        CocoSegmentation(write(images=[image(), image(file_name="b.png")]))


def test_duplicate_annotation_ids_are_warned_of_and_both_are_kept(write):
    rows = [annotation([rectangle(0, 0, 5, 5)]), annotation([rectangle(10, 0, 5, 5)])]
    with pytest.warns(DataWarning, match=r"annotation ids that occur twice; all are kept: 1 \(annotation 5\)"):
        data = CocoSegmentation(write(rows))
    assert data.mask(0).sum() == 50


def test_one_file_under_two_ids_is_warned_of(write):
    with pytest.warns(DataWarning, match=r"files that are listed as several images, .*: 1 \(a\.png\)"):
        assert len(CocoSegmentation(write(images=[image(), image(2, "./a.png")]))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 8}, "annotation 5 in .* has image_id 8, which is not there"),
        ({"image_id": "8"}, "has image_id '8', which is not there"),
        ({"image_id": 1.5}, "has image_id 1.5, which is not there"),
        ({"image_id": True}, "has image_id True, which is not there"),
        ({"image_id": [1]}, r"has image_id \[1\], which is not there"),
        ({"category_id": 4}, "has category_id 4, which is not there"),
        ({"category_id": None}, "has category_id None, which is not there"),
    ],
)
def test_a_dangling_id_is_an_error_that_names_it(write, change, message):
    with pytest.raises(DataError, match=message):
        CocoSegmentation(write([annotation() | change]))


def test_category_ids_may_have_gaps_and_may_be_zero(write):
    categories = [{"id": 90, "name": "c"}, {"id": 0, "name": "a"}, {"id": 17, "name": "b"}]
    rows = [annotation([rectangle(10 * i, 0, 5, 5)], i, category_id=c) for i, c in enumerate((0, 17, 90))]
    data = CocoSegmentation(write(rows, categories=categories))
    assert data.class_names == ("background", "a", "b", "c")
    assert data.mask(0)[0, [0, 10, 20, 29]].tolist() == [1, 2, 3, 0]


def test_categories_with_one_id_are_an_error(write):
    with pytest.raises(DataError, match=r"two categories have the same id: 1$"):
        CocoSegmentation(write(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]))


def test_categories_with_one_name_are_an_error_or_one_class(write):
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 4, "name": "a"}, {"id": 5, "name": "c"}]
    rows = [annotation([rectangle(6 * i, 0, 5, 5)], i, category_id=c) for i, c in enumerate((1, 2, 4, 5))]
    file = write(rows, categories=categories)
    with pytest.raises(DataError, match=r"two categories have the same name: a; `merge_same_name`"):
        CocoSegmentation(file)
    data = CocoSegmentation(file, merge_same_name=True)
    assert data.class_names == ("background", "a", "b", "c")
    assert data.mask(0)[0, [0, 6, 12, 18]].tolist() == [1, 2, 1, 3]


def test_crowds_are_painted_like_others_or_ignored_and_counted(write):
    file = write([annotation(iscrowd=1)])
    assert (CocoSegmentation(file).mask(0) == 1).all()
    assert (CocoSegmentation(file, crowd="ignore").mask(0) == 255).all()
    assert notes_of(file) == {"crowd": 1}


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize(
    ("value", "is_set"),
    [("0", False), ("1", True), ("false", False), ("True", True), ("0.0", False), (" ", False), (2, True)],
)
def test_flags_may_be_text(write, key, value, is_set):
    mask = CocoSegmentation(write([annotation(**{key: value})]), crowd="ignore").mask(0)
    assert (mask == (255 if is_set else 1)).all()


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize("value", ["maybe", "01", [], {"a": 1}])
def test_a_flag_that_is_neither_0_nor_1_is_an_error(write, key, value):
    with pytest.raises(DataError, match=rf"annotation 5 of a\.png has {key} .*, expected 0 or 1"):
        CocoSegmentation(write([annotation(**{key: value})]))


def test_images_without_annotations_are_counted_and_kept(write):
    file = write()
    assert len(CocoSegmentation(file)) == 1
    assert notes_of(file) == {"no-annotations": 1}


def test_all_faults_are_found_at_once_and_none_is_raised_by_reading(tmp_path, write):
    rows = [annotation({"size": [3, 3], "counts": [9]}), annotation(i=6, image_id=9), annotation([[1, 2]], 7)]
    file = write(rows, [image(), image(2, "gone.png"), image(3, "http://x/y.png")])
    found = read_coco(file).findings
    assert {f.kind: f.severity for f in found} == {
        "only-background": "error",
        "bad-segmentation": "error",
        "unknown-image-id": "error",
        "short-polygon": "note",
        "missing-image": "error",
        "url": "error",
    }
    with pytest.raises(DataError) as raised:
        CocoSegmentation(file)
    for words in ("no image at", "http://x/y.png", "annotation 5 of a.png", "image_id 9"):
        assert words in str(raised.value)


JUNK = [None, True, -1, 0, 1e400, 10**400, float("nan"), "", "x", "\ud800", "a\0", [], [[]], {}, {"id": 1}, "y" * 5000]


def places(node, path=()):
    """Return the paths to all values in a JSON."""
    yield path
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield from places(node[key], (*path, key))


@pytest.mark.filterwarnings("default::segkit.data.findings.DataWarning")
def test_junk_at_any_place_of_the_json_is_a_data_error_or_does_no_harm(write):
    rows = [annotation([rectangle(0, 0, 5, 5)]), annotation(i=6), annotation({"size": [20, 30], "counts": "0hb0"}, 7)]
    file = write(rows)
    text = file.read_text()
    for *path, last in (path for path in places(json.loads(text)) if path):
        for junk in JUNK:
            content = json.loads(text)
            node = content
            for key in path:
                node = node[key]
            node[last] = junk
            file.write_text(json.dumps(content))
            with contextlib.suppress(DataError):
                data = CocoSegmentation(file)
                assert all(mask.shape == (20, 30) for _, mask in (data[i] for i in range(len(data))))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [{"a": 1}, [1], "text"])
def test_rows_that_are_no_objects_are_named(tmp_path, write, key, value):
    file = write()
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(DataError, match=f"its '{key}' must be a list of objects"):
        CocoSegmentation(file)
