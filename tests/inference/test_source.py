import json
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segkit.errors import DataError, DataWarning, UsageError
from segkit.inference import open_source


@pytest.fixture
def photographs(tmp_path):
    for name in ("a.png", "deep/b.jpg", "deep/er/c d ü.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (200, 0, 0)).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no image")
    return tmp_path


def names(source, **options):
    return [image.name.as_posix() for image in open_source(source, **options)]


def test_a_folder_lists_its_images_and_those_of_its_subfolders(photographs):
    assert names(photographs) == ["a.png", "deep/b.jpg", "deep/er/c d ü.png"]


def test_one_image_is_named_after_itself(photographs):
    (image,) = open_source(photographs / "deep/b.jpg")
    assert image.name == Path("b.jpg")
    assert image.read().shape == (4, 6, 3)


def test_names_of_a_glob_start_from_the_common_folder(photographs):
    assert names(f"{photographs}/**/*.png") == ["a.png", "deep/er/c d ü.png"]
    assert names(f"{photographs}/deep/*.jpg") == ["b.jpg"]
    assert names(f"{photographs}/**/**/*.png") == ["a.png", "deep/er/c d ü.png"]
    with pytest.raises(DataError, match="nothing matches"):
        open_source(f"{photographs}/*.tif")


def test_a_list_names_files_next_to_it_or_below_the_root(photographs, tmp_path_factory):
    listed = "# comment\n\ndeep/b.jpg\na.png\na.png\nmissing.png\n"
    (photographs / "list.txt").write_text(listed)
    assert names(photographs / "list.txt") == ["deep/b.jpg", "a.png", "missing.png"]
    elsewhere = tmp_path_factory.mktemp("lists") / "list.txt"
    elsewhere.write_text(listed)
    *there, missing = open_source(elsewhere, photographs)
    assert [image.read().shape for image in there] == [(4, 6, 3)] * 2
    with pytest.raises(DataError, match="no image at"):
        missing.read()


def test_a_file_that_a_list_names_in_two_ways_is_listed_once(photographs, monkeypatch):
    monkeypatch.chdir(photographs)
    Path("list.txt").write_text(f"a.png\n{photographs}/a.png\ndeep/b.jpg\n")
    assert names("list.txt") == ["a.png", "deep/b.jpg"]


def test_a_list_may_name_files_that_are_not_utf_8(photographs):
    name = os.fsdecode(b"caf\xe9.png")
    (photographs / "a.png").rename(photographs / name)
    (photographs / "list.txt").write_bytes(b"caf\xe9.png\n")
    (image,) = open_source(photographs / "list.txt")
    assert image.name == Path(name)
    assert image.read().shape == (4, 6, 3)


@pytest.mark.parametrize("name", ["deep\\b.jpg", "deep/B.JPG", "C:\\photos\\deep\\b.jpg", "/no/such/place/deep/b.jpg"])
def test_names_that_another_system_wrote_are_found(photographs, name):
    (photographs / "list.txt").write_text(f"a.png\n{name}\n")
    with pytest.warns(DataWarning, match="names are spelt in another way, or with other folders.*: 1 "):
        assert names(photographs / "list.txt") == ["a.png", "deep/b.jpg"]
    row = {"id": 1, "file_name": name, "height": 4, "width": 6}
    file = photographs / "test.json"
    file.write_text(json.dumps({"images": [row], "categories": [{"id": 1, "name": "can"}]}))
    with pytest.warns(DataWarning, match="names are spelt in another way, or with other folders"):
        (image,) = open_source(file)
    assert image.read().shape == (4, 6, 3)
    assert image.name == Path("deep/B.JPG" if name == "deep/B.JPG" else "deep/b.jpg")


def test_a_coco_json_has_ids_and_sizes_and_its_bad_images_fail_when_read(photographs):
    rows = [("a.png", 4), ("deep/b.jpg", 5), ("none.png", 4)]
    images = [{"id": i, "file_name": n, "height": h, "width": 6} for i, (n, h) in enumerate(rows, start=7)]
    file = photographs / "test.json"
    file.write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "can"}]}))
    good, *bad = open_source(file)
    assert (good.name, good.ids, good.read().shape) == (Path("a.png"), (7,), (4, 6, 3))
    assert {image.name.as_posix() for image in bad} == {"deep/b.jpg", "none.png"}
    for image in bad:
        with pytest.raises(DataError, match=image.name.name):
            image.read()


def test_a_coco_json_lists_a_file_once_and_its_annotations_are_ignored(photographs):
    rows = [(1, "a.png"), (2, "./a.png"), (3, "none.png"), (4, "none.png")]
    images = [{"id": i, "file_name": name, "height": 4, "width": 6} for i, name in rows]
    bad = [{"id": 1, "image_id": 9, "category_id": 1}, {"id": 2, "image_id": 1, "category_id": 1, "segmentation": "?"}]
    categories = [{"id": i, "name": "can"} for i in (1, 2)]
    file = photographs / "test.json"
    file.write_text(json.dumps({"images": images, "categories": categories, "annotations": bad}))
    found = open_source(file, class_names=("background", "can"))
    assert [image.name.as_posix() for image in found] == ["a.png", "none.png"]
    assert found[0].ids == (1, 2)
    file.write_text(json.dumps({"images": images + images[:1], "categories": categories}))
    with pytest.raises(DataError, match="two images with the same id 1"):
        open_source(file)


def test_a_second_record_of_a_file_that_cannot_be_used_is_told(photographs):
    images = [{"id": i, "file_name": "a.png", "height": height, "width": 6} for i, height in ((1, 4), (2, 400))]
    file = photographs / "test.json"
    file.write_text(json.dumps({"images": images, "categories": [{"id": 5, "name": "can"}]}))
    with pytest.warns(DataWarning, match=r"lists a\.png again as an image that cannot be used"):
        (found,) = open_source(file)
    assert found.ids == (1,)


def test_a_coco_json_may_number_the_classes_otherwise_and_lack_some(photographs):
    images = [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}]
    categories = [{"id": 0, "name": "Background"}, {"id": 7, "name": "can"}, {"id": 9, "name": "box"}]
    file = photographs / "test.json"
    file.write_text(json.dumps({"images": images, "categories": categories}))
    assert len(open_source(file, class_names=("background", "box", "bag", "can"))) == 1
    with pytest.raises(DataError, match="has the category 'can', but the classes of the model are background, box; "):
        open_source(file, class_names=("background", "box"))


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "C:\\x.png"])
def test_a_json_cannot_name_results_outside_the_output(photographs, name):
    Image.new("RGB", (6, 4)).save(photographs.parent / "x.png")
    row = {"id": 1, "file_name": name, "height": 4, "width": 6}
    file = photographs / "deep" / "test.json"
    file.write_text(json.dumps({"images": [row], "categories": [{"id": 1, "name": "can"}]}))
    with pytest.raises(DataError, match="outside the output folder"):
        open_source(file)


def write_video(file, values, codec="MJPG"):
    """Frames of one red each, five a second."""
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*codec), 5, (64, 48))
    for value in values:
        writer.write(np.full((48, 64, 3), (0, 0, value), dtype=np.uint8))
    writer.release()
    return file


def patch(file, marker, offset, new):
    content = bytearray(file.read_bytes())
    start = content.index(marker) + offset
    content[start : start + len(new)] = new
    file.write_bytes(content)


def test_a_video_is_read_as_rgb_frames(tmp_path):
    frames = list(open_source(write_video(tmp_path / "clip.avi", (50, 150, 250))))
    assert [frame.name.as_posix() for frame in frames] == [f"clip/00000{i}.png" for i in range(3)]
    for frame, value in zip(frames, (50, 150, 250), strict=True):
        assert abs(frame.read().mean((0, 1)) - (value, 0, 0)).max() < 8


@pytest.mark.parametrize("suffix", ["avi", "mkv"])
def test_a_video_that_is_cut_off_ends_with_a_frame_that_cannot_be_read(tmp_path, suffix):
    file = write_video(tmp_path / f"clip.{suffix}", range(100))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    video = open_source(file)
    *frames, last = video
    assert 20 < len(frames) < 90
    assert [frame.read().shape for frame in frames] == [(48, 64, 3)] * len(frames)
    assert [*(frame.name for frame in frames), last.name] == video.names()
    with pytest.raises(DataError, match=f"clip.{suffix} is cut off or damaged"):
        last.read()


def test_frames_of_a_video_are_counted_even_if_its_header_is_wrong(tmp_path):
    shorter = write_video(tmp_path / "shorter.avi", range(10))
    patch(shorter, b"strh", 40, struct.pack("<I", 4))  # its number of frames
    unknown = write_video(tmp_path / "unknown.mkv", range(10))
    patch(unknown, b"\x44\x89\x88", 0, b"\xec\x89" + bytes(9))  # an empty element in place of its duration
    sound = write_video(tmp_path / "sound.mkv", range(10))
    patch(sound, b"\x44\x89\x88", 3, struct.pack(">d", 2600))  # milliseconds, that of the longest track
    for file in (shorter, unknown, sound):
        assert [frame.read().shape for frame in open_source(file)] == [(48, 64, 3)] * 10


def test_frames_that_a_trimmed_video_does_not_show_are_not_missing(tmp_path):
    file = write_video(tmp_path / "clip.mp4", [100] * 10, "mp4v")
    patch(file, b"elst", 16, struct.pack(">I", 10240))  # where its edit list begins: after a second
    assert [frame.read().shape for frame in open_source(file)] == [(48, 64, 3)] * 5


def test_a_video_may_have_a_name_that_is_not_utf_8_if_opencv_can_read_it(tmp_path):
    file = write_video(tmp_path / "clip.avi", (50,)).rename(tmp_path / os.fsdecode(b"caf\xe9.avi"))
    if tuple(map(int, cv2.__version__.split(".")[:2])) < (4, 12):
        with pytest.raises(UsageError, match="not UTF-8; rename the file"):
            open_source(file)
        return
    (frame,) = open_source(file)
    assert frame.name == Path(file.stem, "000000.png")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "there is no file or folder"),
        ("clip.mp4", "no video", "is not a video"),
        ("list.txt", "# nothing", "there is nothing to segment: no images in"),
    ],
)
def test_an_error_names_what_cannot_be_a_source(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / name)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no images below"):
        open_source(tmp_path)
