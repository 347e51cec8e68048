"""RunReport: the page and the pictures of a run, from plain values."""

from segkit.report import RunFacts, RunReport, RunResults
from segkit.runs import RunFolder


def test_curves_and_page_are_skipped_while_they_would_take_more_than_their_share(tmp_path):
    row = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "miou": 0.5, "pixel_accuracy": 0.5, "lr": 0.1, "time": 1.0}
    facts = RunFacts(class_names=("ground",), model="fpn", parameters=1, images=(1, 1), epochs=3)
    for share, expected in ((1e-9, "1 of 3 epochs"), (1e9, "2 of 3 epochs")):
        report = RunReport(RunFolder(tmp_path), facts, largest_share=share)
        for epochs in (1, 2):
            report.update(RunResults([row | {"epoch": epoch} for epoch in range(1, epochs + 1)]))
        assert expected in (tmp_path / "report.html").read_text()
