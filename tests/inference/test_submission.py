import csv
import os

import numpy as np
import pytest

from segkit.inference import check_sample, write_submission


def sample(tmp_path, ids, column="image_id"):
    file = tmp_path / "sample.csv"
    file.write_text("\n".join([f"{column},PredictionString", *(f"{i},0 0" for i in ids)]) + "\n")
    return file


def test_a_row_holds_the_labels_of_the_nearest_pixels_in_reading_order(tmp_path):
    masks = {"b/x.jpg": np.arange(12, dtype=np.uint8).reshape(3, 4), "a.jpg": np.array([[7]], dtype=np.uint8)}
    write_submission(tmp_path / "s.csv", list(masks), masks.__getitem__, size=2)
    rows = list(csv.reader((tmp_path / "s.csv").open()))
    assert rows == [["image_id", "PredictionString"], ["b/x.jpg", "0 2 4 6"], ["a.jpg", "7 7 7 7"]]


def test_the_ids_have_the_order_of_the_sample(tmp_path):
    assert check_sample(sample(tmp_path, ["b.jpg", "a.jpg"]), ["a.jpg", "b.jpg"]) == ["b.jpg", "a.jpg"]


def test_ids_need_not_be_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    write_submission(tmp_path / "s.csv", [name], lambda _: np.zeros((1, 1), np.uint8), size=1)
    assert (tmp_path / "s.csv").read_bytes() == b"image_id,PredictionString\ncaf\xe9.png,0\n"
    assert check_sample(tmp_path / "s.csv", [name]) == [name]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a.jpg", "c.jpg"], "1 of its ids are not images of the source: c.jpg; 1 images are not in it: b.jpg$"),
        (["a.jpg"], "1 images are not in it: b.jpg$"),
        (["a.jpg", "b.jpg", *map(str, range(11))], "11 of its ids are not images .*: 0, 1, 10, 2, .*, 8, ...$"),
        (["a.jpg", "b.jpg", "a.jpg"], "it has an id twice"),
    ],
)
def test_an_error_names_ids_that_do_not_match_the_images(tmp_path, ids, message):
    with pytest.raises(ValueError, match=message):
        check_sample(sample(tmp_path, ids), ["a.jpg", "b.jpg"])


def test_an_error_names_what_is_not_a_sample(tmp_path):
    with pytest.raises(ValueError, match="needs a column image_id"):
        check_sample(sample(tmp_path, ["a.jpg"], column="id"), ["a.jpg"])
    with pytest.raises(ValueError, match="no sample submission at"):
        check_sample(tmp_path / "none.csv", [])
