import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segkit.data import DataError
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


def test_a_folder_gives_its_images_with_those_of_its_subfolders(photographs):
    assert names(photographs) == ["a.png", "deep/b.jpg", "deep/er/c d ü.png"]


def test_one_image_is_named_after_itself(photographs):
    (image,) = open_source(photographs / "deep/b.jpg")
    assert image.name == Path("b.jpg")
    assert image.read().shape == (4, 6, 3)


def test_a_glob_gives_what_matches_named_from_the_folder_that_all_share(photographs):
    assert names(f"{photographs}/**/*.png") == ["a.png", "deep/er/c d ü.png"]
    assert names(f"{photographs}/deep/*.jpg") == ["b.jpg"]
    with pytest.raises(DataError, match="nothing matches"):
        open_source(f"{photographs}/*.tif")


def test_a_list_names_files_beside_it_or_below_the_root(photographs, tmp_path_factory):
    listed = "# comment\n\ndeep/b.jpg\na.png\na.png\nmissing.png\n"
    (photographs / "list.txt").write_text(listed)
    assert names(photographs / "list.txt") == ["deep/b.jpg", "a.png", "missing.png"]
    elsewhere = tmp_path_factory.mktemp("lists") / "list.txt"
    elsewhere.write_text(listed)
    *there, missing = open_source(elsewhere, photographs)
    assert [image.read().shape for image in there] == [(4, 6, 3)] * 2
    with pytest.raises(DataError, match="no image at"):
        missing.read()


def test_a_coco_json_gives_ids_and_sizes_and_keeps_bad_images_to_fail_when_they_are_read(photographs):
    rows = [("a.png", 4), ("deep/b.jpg", 5), ("none.png", 4)]
    images = [{"id": i, "file_name": n, "height": h, "width": 6} for i, (n, h) in enumerate(rows, start=7)]
    file = photographs / "test.json"
    file.write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "can"}]}))
    good, *bad = open_source(file)
    assert (good.name, good.id, good.size) == (Path("a.png"), 7, (4, 6))
    assert {image.name.as_posix() for image in bad} == {"deep/b.jpg", "none.png"}
    for image in bad:
        with pytest.raises(DataError, match=image.name.name):
            image.read()


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "C:\\x.png"])
def test_a_json_cannot_name_results_outside_the_output(photographs, name):
    Image.new("RGB", (6, 4)).save(photographs.parent / "x.png")
    row = {"id": 1, "file_name": name, "height": 4, "width": 6}
    file = photographs / "deep" / "test.json"
    file.write_text(json.dumps({"images": [row], "categories": [{"id": 1, "name": "can"}]}))
    with pytest.raises(DataError, match="outside the output folder"):
        open_source(file)


def test_a_video_gives_its_frames_in_rgb(tmp_path):
    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for value in (50, 150, 250):
        writer.write(np.full((48, 64, 3), (0, 0, value), dtype=np.uint8))
    writer.release()
    frames = list(open_source(file))
    assert [frame.name.as_posix() for frame in frames] == [f"clip/00000{i}.png" for i in range(3)]
    for frame, value in zip(frames, (50, 150, 250), strict=True):
        assert abs(frame.read().mean((0, 1)) - (value, 0, 0)).max() < 8


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "there is no file or folder"),
        ("clip.mp4", "no video", "is not a video"),
        ("list.txt", "# nothing", "there is nothing to segment: no images in"),
    ],
)
def test_what_cannot_be_a_source_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / name)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no images below"):
        open_source(tmp_path)
