import re
from pathlib import Path

import numpy as np
import pytest

import segkit

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_the_source_in_the_readme_trains(tmp_path, monkeypatch):
    """Run the lines of the README next to the folder that they read."""
    random = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    for i in range(10):
        image, labels = random.integers(0, 256, (20, 30, 3), np.uint8), random.integers(0, 3, (20, 30), np.uint8)
        np.savez(tmp_path / f"scans/{i}.npz", image=image, labels=labels)
    monkeypatch.chdir(tmp_path)
    readme = README.read_text(encoding="utf-8")
    code, command = re.search(
        r"```python\n([^`]*SegmentationDataset.*?)```.*?```python\n(.*?)```", readme, re.DOTALL
    ).groups()
    names = {}
    exec(code, names)
    assert (len(names["train_set"]), len(names["val_set"])) == (8, 2)
    images, target = next(iter(names["loader"]))
    assert (images.shape, target.shape) == ((8, 3, 512, 512), (8, 512, 512))
    assert set(target.unique().tolist()) <= {0, 1, 2, 255}
    lines = code[code.index("class ") : code.index("train_set")].splitlines()
    assert len([line for line in lines if line.strip()]) == 10

    small = 'backbone="test_resnet", pretrained="false", crop=32, batch_size=4, workers=0, device="cpu", '
    exec(command.replace("val=val_set, ", f"val=val_set, {small}").replace("epochs=40", "epochs=1"), names)
    assert names["run"].load().class_names == names["train_set"].class_names
    assert (tmp_path / "runs/scans/report.html").is_file()

    resume = {"val": names["val_set"], "out": "runs/scans", "resume": True, "epochs": 2}
    with pytest.raises(ValueError, match="the data files have changed since the run began"):
        segkit.train(data=names["train_set"].subset([0, 1]), **resume)
    assert len(segkit.train(data=names["train_set"], **resume).history) == 2
