import unicodedata

import pytest

from segkit.data.image_names import ImageNames, same_files

FILES = ("a.jpg", "train/1.jpg", "train/b/2.png", "val/1.jpg", "caf\u00e9.png", "both.png", "BOTH.PNG")


@pytest.fixture
def names(tmp_path):
    for file in FILES:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return ImageNames(tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("train\\b\\2.png", "train/b/2.png"),
        ("A.JPG", "a.jpg"),
        (unicodedata.normalize("NFD", "caf\u00e9.png"), "caf\u00e9.png"),
        ("C:\\data\\train\\1.jpg", "train/1.jpg"),
        ("/home/somebody/train/b/2.PNG", "train/b/2.png"),
        ("Both.png", None),  # either of two
        ("b/2.png", None),  # a relative name is the whole path
        ("/data/1.jpg", None),  # no file has this end: there is a folder in front of each 1.jpg
        ("..\\a.jpg", None),
        ("c.jpg", None),
    ],
)
def test_a_name_finds_the_only_file_that_it_can_mean(names, name, file):
    assert names.find([name]) == [file]


def test_a_file_that_two_names_can_mean_is_found_for_neither(names):
    assert names.find(["/cats/a.jpg", "/dogs/a.jpg", "train\\1.jpg"]) == [None, None, "train/1.jpg"]
    assert names.find(["/cats/a.jpg"], taken=["./a.jpg"]) == [None]
    assert names.find(["A.jpg", "A.jpg"]) == ["a.jpg", "a.jpg"]  # one image that is listed twice


def test_a_hint_names_the_files_with_the_same_last_part(names):
    assert names.hint("b/2.png") == "; the folder has train/b/2.png"
    assert names.hint("1.jpg") == "; the folder has train/1.jpg, val/1.jpg, and it is not clear which one is meant"
    assert names.hint("c.jpg") == ""
    of_two = "; the folder has a.jpg, but another image of the list can mean this file, too: list it once"
    assert names.hint("C:\\dogs\\a.jpg") == of_two  # `find` would have found it for one


def test_names_that_can_mean_one_file_are_pairs():
    names = ["a.jpg", "train\\1.jpg", "/data/cats/2.jpg", "b/3.jpg"]
    others = ["A.JPG", "train/1.jpg", "cats/2.jpg", "C:\\x\\b\\3.jpg", "3.jpg", "/other/cats/2.jpg"]
    assert same_files(names, others) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert same_files(names, []) == []
