"""report.html: one page without references that escapes every text."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from segkit.metrics import ConfusionMatrix
from segkit.report import Picture, RunPage, render

NAN = float("nan")
NAMES = ("background", "can", "cup")
EVIL = '<script>alert("1")</script>"\' onload=x $name &amp;'


class Elements(HTMLParser):
    """Parses a page into tags with their attributes and texts, and checks that every tag is closed."""

    EMPTY = ("meta", "img", "polyline", "circle", "line")

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def row(epoch, **more):
    values = {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1.1 / epoch, "miou": min(1.0, 0.2 * epoch)}
    return {**values, "pixel_accuracy": min(1.0, 0.3 * epoch), "lr": 1e-3, "time": 2.0, **more}


@pytest.fixture(scope="module")
def page():
    confusion = ConfusionMatrix(3, class_names=NAMES)
    confusion.update(np.array([[0, 1, 1, 2]], np.uint8), np.array([[0, 1, 1, 1]], np.uint8))
    photograph = Picture.photograph("worst", "what was worst", np.full((40, 60, 3), 90, np.uint8))
    return RunPage(
        name="run 7",
        status="Finished.",
        summary={"best mIoU, epoch 3": "60.00 %"},
        history=[row(1), row(2), row(3)],
        best_epoch=3,
        class_names=NAMES,
        iou=[0.9, 0.3, NAN],
        confusion=confusion,
        confusion_picture=photograph,
        pictures=[photograph],
        commands={"Segment photographs": "python infer.py --weights 'runs/a b'"},
        changed={"lr": "0.001"},
        settings={"lr": "0.001", "crop": "512"},
        environment={"torch": "2.15.0"},
    )


def test_the_page_refers_to_nothing_outside_itself(page):
    elements = Elements(render(page))
    assert elements.open == []
    for tag, attributes in elements.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "a", "use", "image")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action", "poster", "background") or "href" in name:
                assert value.startswith("data:image/")
            assert not re.search(r"url\(|@import", value or "")
    (style,) = re.findall(r"<style>(.*?)</style>", render(page), re.DOTALL)
    assert not re.search(r"url\(|@import|//", style)
    (policy,) = [a["content"] for a in elements.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert not [a for a in elements.all("meta") if a.get("http-equiv") == "refresh"]


def test_every_picture_and_chart_is_described(page):
    elements = Elements(render(page))
    assert [image["alt"] for image in elements.all("img")] == ["what was worst"] * 2
    described = [chart["aria-label"] for chart in elements.all("svg")]
    assert described[0] == "Loss: training from 1 to 0.3333, validation from 1.1 to 0.3667"
    assert len(described) == 3


def test_names_are_escaped_everywhere(page):
    evil = replace(
        page,
        name=EVIL,
        status=EVIL,
        summary={EVIL: EVIL},
        class_names=(EVIL, "can", EVIL + "2"),
        pictures=[replace(page.pictures[0], caption=EVIL, alt=EVIL)],
        commands={EVIL: EVIL},
        changed={EVIL: EVIL},
        settings={EVIL: EVIL, "crop": "512"},
        environment={EVIL: EVIL},
    )
    clean, attacked = Elements(render(page)), Elements(render(evil))
    assert [tag for tag, _ in attacked.tags] == [tag for tag, _ in clean.tags]
    assert [sorted(attributes) for _, attributes in attacked.tags] == [
        sorted(attributes) for _, attributes in clean.tags
    ]
    assert attacked.texts.count(EVIL) >= 11
    assert EVIL in [image["alt"] for image in attacked.all("img")]


def test_classes_are_sorted_from_best_to_worst_and_those_without_a_score_come_last(page):
    texts = "".join(Elements(render(replace(page, iou=[0.3, 0.9, NAN]))).texts)
    table = texts[texts.index("IoU %") :]
    assert table.index("can90.00") < table.index("background30.00") < table.index("cup-")


def test_the_largest_confusions_are_listed(page):
    texts = Elements(render(page)).texts
    start = texts.index("% of all pixels")
    assert texts[start + 1 : start + 5] == ["can", "cup", "33.33", "25.00"]


def test_a_run_in_its_first_epochs_has_a_page(page):
    bare = replace(page, history=[row(1, val_loss=NAN, miou=NAN, pixel_accuracy=NAN)], best_epoch=0, iou=[NAN] * 3)
    elements = Elements(render(replace(bare, confusion=None, confusion_picture=None, pictures=())))
    assert elements.all("img") == []
    assert "Classes" not in elements.texts
    assert elements.all("svg")[1]["aria-label"] == "Validation"


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-0.3, 0.2, 1e-9], [1e6, 3e7], [NAN, 2e-5, NAN, 1e-5]])
def test_a_chart_contains_all_its_points(page, values):
    history = [row(epoch, lr=value) for epoch, value in enumerate(values, 4)]
    elements = Elements(render(replace(page, history=history, best_epoch=4)))
    for circle in elements.all("circle"):
        assert 0 <= float(circle["cx"]) <= 360
        assert 0 <= float(circle["cy"]) <= 210
    assert all("nan" not in line["points"] for line in elements.all("polyline"))


def test_averaged_weights_have_their_own_curve(page):
    history = [row(epoch, ema_val_loss=0.4, ema_miou=0.5) for epoch in (1, 2)]
    texts = Elements(render(replace(page, history=history, best_epoch=1))).texts
    assert {"mIoU, averaged weights", "validation, averaged weights"} <= set(texts)
