import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from PIL import Image

from segkit.data import DataError
from segkit.errors import MachineError
from segkit.files import Fingerprint
from segkit.inference import Prediction, PredictionWriter


def test_files_mirror_the_names_of_the_images_and_equal_ones_stay_apart(tmp_path):
    names = [Path("a.jpg"), Path("a.png"), Path("deep/b.jpg")]
    writer = PredictionWriter(tmp_path, ("ground", "can"), names)
    image, mask = np.zeros((37, 50, 3), np.uint8), np.zeros((37, 50), np.uint8)
    mask[:10] = 1
    rows = [writer.write(name, image, Prediction(mask, None)) for name in names]
    written = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*"))
    assert written == [
        *("mask/a.jpg.png", "mask/a.png.png", "mask/deep/b.png"),
        *("overlay/a.jpg.jpg", "overlay/a.png.jpg", "overlay/deep/b.jpg"),
    ]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask/deep/b.png")), mask)
    assert [written.row["image"] for written in rows] == ["a.jpg", "a.png", "deep/b.jpg"]
    assert rows[0].pixels == (27 * 50, 10 * 50)
    assert float(rows[0].row["share/can"]) == pytest.approx(10 / 37, abs=1e-4)


def test_files_stay_apart_if_an_image_has_the_output_name_of_another(tmp_path):
    names = [Path(name) for name in ("a.jpg", "a.png", "a.jpg.jpg", "a.jpg.jpg.png", "b.jpg")]
    writer = PredictionWriter(tmp_path, ("ground", "can"), names)
    assert list(writer.targets.values()) == ["a.jpg", "a.png", "a.jpg.jpg", "a.jpg.jpg.png", "b"]


@pytest.mark.parametrize("size", [(3, 65_600), (65_500, 40)])
def test_an_overlay_that_no_jpeg_can_hold_is_made_smaller(tmp_path, size):
    writer = PredictionWriter(tmp_path, ("ground", "can"), [Path("a.png")])
    mask = np.ones(size, np.uint8)
    writer.write(Path("a.png"), np.zeros((*size, 3), np.uint8), Prediction(mask, None))  # the legend adds to its height
    with Image.open(writer.file("overlay", Path("a.png"))) as overlay:
        assert max(overlay.size) == 65_500
    assert np.array_equal(writer.read_mask(Path("a.png")), mask)


def test_a_mask_larger_than_pillow_opens_is_read_and_a_damaged_one_is_named(tmp_path, monkeypatch):
    writer = PredictionWriter(tmp_path, ("ground", "can"), [Path("a.png")], ["mask"])
    mask = np.ones((20, 30), np.uint8)
    writer.write(Path("a.png"), None, Prediction(mask, None))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert np.array_equal(writer.read_mask(Path("a.png")), mask)
    file = writer.file("mask", Path("a.png"))
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"a\.png"):
        writer.read_mask(Path("a.png"))


def test_an_empty_file_is_not_done(tmp_path):
    writer = PredictionWriter(tmp_path, ("ground", "can"), [Path("a.png")])
    writer.write(Path("a.png"), np.zeros((4, 5, 3), np.uint8), Prediction(np.zeros((4, 5), np.uint8), None))
    assert writer.is_done(Path("a.png"))
    writer.file("overlay", Path("a.png")).write_bytes(b"")
    assert not writer.is_done(Path("a.png"))


def test_files_that_were_not_made_together_are_not_done(tmp_path):
    image, prediction, name = np.zeros((4, 5, 3), np.uint8), Prediction(np.zeros((4, 5), np.uint8), None), Path("a.png")
    both = PredictionWriter(tmp_path, ("ground", "can"), [name])
    only_masks = PredictionWriter(tmp_path, ("ground", "can"), [name], ["mask"])
    both.write(name, image, prediction, Fingerprint(3, "old"))
    assert both.is_done(name)
    only_masks.write(name, image, prediction, Fingerprint(3, "new"))  # the overlay is still the one of the old image
    assert only_masks.is_done(name)
    assert not both.is_done(name)
    assert only_masks.existing(name).row["source_sha256"] == "new"


def test_the_mask_is_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(Prediction, "save", lambda self, path, text=None: written.append(path.parent.name))
    writer = PredictionWriter(tmp_path, ("ground", "can"), [Path("a.png")], ["mask", "overlay", "probs"])
    writer.write(Path("a.png"), None, Prediction(np.zeros((4, 5), np.uint8), None))
    assert written == ["overlay", "probs", "mask"]


def test_probabilities_of_one_name_may_be_written_by_two_threads(tmp_path, monkeypatch):
    writer = PredictionWriter(tmp_path, ("ground", "can"), [Path("a.png")], ["probs"])
    prediction = Prediction(np.zeros((4, 5), np.uint8), np.full((2, 4, 5), 0.5, np.float32))
    save, both = np.savez_compressed, Barrier(2)

    def save_at_once(file, **arrays):
        save(file, **arrays)
        both.wait(timeout=10)

    monkeypatch.setattr(np, "savez_compressed", save_at_once)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: writer.write(Path("a.png"), None, prediction), range(2)))
    assert [file.name for file in (tmp_path / "probs").iterdir()] == ["a.npz"]


def test_probabilities_that_do_not_fit_on_the_disk_leave_no_file(tmp_path, monkeypatch):
    writer = PredictionWriter(tmp_path, ("ground", "can"), [Path("a.png")], ["probs"])
    prediction = Prediction(np.zeros((4, 5), np.uint8), np.full((2, 4, 5), 0.5, np.float32))

    def fill(file, **arrays):
        file.write_bytes(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(np, "savez_compressed", fill)
    with pytest.raises(MachineError, match=r"cannot write .*: No space left on device"):
        writer.write(Path("a.png"), None, prediction)
    assert list((tmp_path / "probs").iterdir()) == []
