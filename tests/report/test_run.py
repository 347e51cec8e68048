"""RunReport: the page and the pictures of a run, from plain values."""

import importlib
import sys

import numpy as np
import pytest

from segkit.errors import MissingPackageError
from segkit.metrics import ConfusionMatrix
from segkit.report import RunFacts, RunReport, RunResults, pictures
from segkit.report.gallery import Gallery
from segkit.runs import RunFolder

ROW = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "miou": 0.5, "pixel_accuracy": 0.5, "lr": 0.1, "time": 1.0}
FACTS = RunFacts(class_names=("ground",), model="fpn", parameters=1, images=(1, 1), epochs=3)


def test_curves_and_page_are_skipped_while_they_would_take_more_than_their_share(tmp_path):
    for share, expected in ((1e-9, "1 of 3 epochs"), (1e9, "2 of 3 epochs")):
        report = RunReport(RunFolder(tmp_path), FACTS, largest_share=share)
        for epochs in (1, 2):
            report.update(RunResults([ROW | {"epoch": epoch} for epoch in range(1, epochs + 1)]))
        assert expected in (tmp_path / "report.html").read_text()


@pytest.fixture
def without_matplotlib(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)  # an import of it fails
        patch.setattr("segkit.report.run.MATPLOTLIB_FAULT", importlib.reload(pictures).MATPLOTLIB_FAULT)
        yield
    importlib.reload(pictures)


def test_a_matplotlib_that_cannot_be_imported_is_told_once_and_costs_only_charts(without_matplotlib, tmp_path, caplog):
    report = RunReport(RunFolder(tmp_path), FACTS)
    results = RunResults([ROW | {"iou/ground": 0.5}], 1, 0.5)
    report.update(results)
    confusion = ConfusionMatrix(1, class_names=["ground"])
    confusion.update(np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 2), np.uint8))
    (tmp_path / "confusion_matrix.png").write_bytes(b"of an earlier model")
    report.finish(results, confusion, Gallery(1, 32))
    photographs = ("worst.png", "best.png", "val_predictions.png")  # the empty gallery has none to draw
    (warned,) = [text for text in caplog.messages if not any(name in text for name in photographs)]
    assert warned.startswith("matplotlib cannot be imported: ")
    assert warned.endswith("; training continues without curves and charts")
    assert "Stopped early after 1 of 3 epochs" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "confusion_matrix.csv").is_file()
    assert not (tmp_path / "curves.png").exists()


def test_a_chart_without_matplotlib_is_an_error_that_names_it(without_matplotlib, tmp_path):
    with pytest.raises(MissingPackageError, match="matplotlib cannot be imported"):
        pictures.save_curves([ROW], tmp_path / "curves.png")
