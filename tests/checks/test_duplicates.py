import numpy as np
import pytest
from PIL import Image

from segkit.checks.duplicates import Listed, find_duplicates, find_sources


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in ("a", "b", "other/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    return tmp_path


def listed(folder, *names):
    """Images as `set/file`, such as train/a.png; a third part is the folder."""
    images = []
    for name in names:
        set_name, *parent, file_name = name.split("/")
        images.append(Listed(set_name, file_name, folder.joinpath(*parent, file_name)))
    return images


def duplicates(images, alike=()):
    return [
        (position, first, finding.kind, finding.sentence) for position, first, finding in find_duplicates(images, alike)
    ]


def test_different_images_are_no_duplicates(folder):
    assert duplicates(listed(folder, "train/a.png", "train/b.png")) == []


def test_a_copy_under_another_name_is_reported_within_a_set_and_across(folder):
    assert duplicates(listed(folder, "train/a.png", "train/copy.png")) == [
        (1, 0, "same-bytes", "copy.png has the same bytes as a.png")
    ]
    assert duplicates(listed(folder, "train/a.png", "val/copy.png")) == [
        (1, 0, "same-bytes-across", "copy.png has the same bytes as a.png of train")
    ]


def test_the_same_file_in_two_sets_is_reported_once(folder):
    images = listed(folder, "train/b.png", "train/a.png", "val/a.png")
    assert duplicates(images, alike=[[1, 2]]) == [(2, 1, "same-file-across", "a.png is the file of a.png of train")]


def test_the_same_file_twice_in_a_set_is_reported_only_by_its_reader(folder):
    assert duplicates(listed(folder, "train/a.png", "train/a.png")) == []


def test_images_that_look_alike_are_reported_with_the_first_of_them(folder):
    images = listed(folder, "train/a.png", "train/b.png", "val/other/a.png")
    assert [row[:3] for row in duplicates(images, alike=[[0, 1, 2]])] == [(1, 0, "alike"), (2, 0, "alike-across")]


def test_the_same_name_in_two_sets_is_reported(folder):
    (row,) = duplicates(listed(folder, "train/a.png", "val/other/a.png"))
    assert row == (1, 0, "same-name-across", "a.png has the name of a.png of train")


def test_copies_by_roboflow_and_frames_of_videos_are_found_by_their_names():
    hashes = [f"{i:032x}" for i in range(4)]
    names = [("train", "a", 0), ("train", "a", 1), ("train", "b", 2), ("val", "a", 3)]
    images = [Listed(where, f"{name}_jpg.rf.{hashes[i]}.jpg", None) for where, name, i in names]
    found = {(name, one.kind, one.where) for name, one in find_sources(images)}
    assert found == {("train", "copies", "a_jpg"), ("val", "copy-across", images[3].file_name)}
    frames = [Listed("train", f"vid_{i // 4}_{i}.jpg", None) for i in range(12)]
    ((name, finding),) = find_sources(frames)
    assert (name, finding.kind, finding.where) == ("train", "frames", r'`group_by="regex:vid_\d+"`')
