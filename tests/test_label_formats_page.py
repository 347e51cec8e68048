"""docs/label-formats.md: its table has every format, and its reader works."""

import json
import re
from pathlib import Path

import numpy as np
from helpers.label_formats import CLASSES, pictures

from segkit.data import CocoSegmentation
from segkit.data.formats import FORMATS

PAGE = (Path(__file__).parents[1] / "docs" / "label-formats.md").read_text(encoding="utf-8")


def test_the_table_has_every_format():
    assert re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)[1:] == list(FORMATS)


def test_the_reader_of_the_page_reads_its_format(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 42
    reader: dict = {}
    exec(compile(code, "docs/label-formats.md", "exec"), reader)
    assert reader["recognise"](tmp_path) is None
    drawn, content = pictures(2, seed=6), {}
    for i, picture in enumerate(drawn):
        picture.save(tmp_path / f"{i}.png")
        regions = [{"shape_attributes": {"name": "point", "cx": 1, "cy": 1}, "region_attributes": {"class": "can"}}]
        for box in picture.boxes:
            x, y = zip(*box.corners, strict=True)
            shape = {"name": "polygon", "all_points_x": x, "all_points_y": y}
            regions.append({"shape_attributes": shape, "region_attributes": {"class": CLASSES[box.label - 1]}})
        content[f"{i}.png1234"] = {"filename": f"{i}.png", "size": 1234, "regions": regions, "file_attributes": {}}
    (tmp_path / "via_region_data.json").write_text(json.dumps(content))
    assert reader["recognise"](tmp_path) == "via_region_data.json is there"
    (labels,) = reader["read"](tmp_path).read()
    data = CocoSegmentation(labels)
    assert data.class_names == ("background", *CLASSES)
    assert [finding.kind for finding in labels.findings] == ["skipped-shape"] * 2
    for i, picture in enumerate(drawn):
        np.testing.assert_array_equal(data.mask(i), picture.mask())
