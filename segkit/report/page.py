"""report.html: one page that shows a run, with all pictures and styles inside the file."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template

import cv2
import numpy as np

from segkit.console import percent
from segkit.labels import background_of
from segkit.metrics import ConfusionMatrix
from segkit.report.charts import line_chart
from segkit.visualize import create_palette

QUALITY = 82  # JPEG quality, 0 to 100
CONFUSIONS = 8  # rows of the table next to the matrix
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """An encoded picture with its caption and alternative text."""

    caption: str
    alt: str
    kind: str
    content: bytes

    @classmethod
    def photograph(cls, caption: str, alt: str, pixels: np.ndarray) -> "Picture":
        """Encode (H, W, 3) uint8 RGB pixels as JPEG."""
        _, content = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        return cls(caption, alt, "jpeg", content.tobytes())

    @classmethod
    def drawing(cls, caption: str, alt: str, path: Path) -> "Picture":
        """Read a PNG file as it is."""
        return cls(caption, alt, "png", path.read_bytes())


@dataclass(frozen=True)
class RunPage:
    """The content of the page. All texts are escaped, so they may contain any characters.

    Attributes:
        name: Name of the run.
        status: Progress of the run, as a sentence.
        summary: The tiles at the top: title -> large text.
        history: Rows of results.csv.
        best_epoch: Epoch of the best weights; 0 if there are none yet.
        class_names: Class names in label order.
        iou: IoU of each class with the best weights, 0 to 1; NaN for classes without a score.
        confusion: Confusion matrix of the best weights; None until training ends.
        confusion_picture: Picture of that matrix.
        pictures: Further pictures, in this order.
        commands: Next steps: purpose -> command line.
        changed: Settings that differ from the defaults: name -> value.
        settings: All settings: name -> value.
        environment: Versions, device and time: name -> value.
    """

    name: str
    status: str
    summary: Mapping[str, str]
    history: Sequence[Mapping[str, float]]
    best_epoch: int
    class_names: Sequence[str]
    iou: Sequence[float]
    confusion: ConfusionMatrix | None = None
    confusion_picture: Picture | None = None
    pictures: Sequence[Picture] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def render(page: RunPage) -> str:
    """Return the page as HTML, with styles and pictures inside it and without scripts."""
    tiles = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in page.summary.items())
    sections = {
        "": f'<div class="tiles">{tiles}</div>',
        "Curves": _curves(page),
        "Classes": _classes(page),
        "Confusions": _confusions(page),
        "Pictures": "\n".join(map(_figure, page.pictures)),
        "Next steps": "\n".join(f"<p>{escape(k)}</p><pre>{escape(v)}</pre>" for k, v in page.commands.items()),
        "Settings": _settings(page),
        "Environment": _plain_table(page.environment),
    }
    return Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(
        name=escape(page.name),
        status=escape(page.status),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        sections="\n".join(
            "<section>\n" + (f"<h2>{escape(title)}</h2>\n" if title else "") + f"{content}\n</section>"
            for title, content in sections.items()
            if content
        ),
    )


def _curves(page: RunPage) -> str:
    if not page.history:
        return ""
    epochs, marked = [row["epoch"] for row in page.history], page.best_epoch or None
    losses = {"training": "train_loss", "validation": "val_loss"}
    scores = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy"}
    if "ema_miou" in page.history[0]:
        losses["validation, averaged weights"] = "ema_val_loss"
        scores["mIoU, averaged weights"] = "ema_miou"
    charts = {
        "Loss": (losses, None),
        "Validation": (scores, 1.0),
        "Learning rate": ({"learning rate": "lr"}, None),
    }
    drawn = [
        line_chart(
            title, epochs, {k: [row[v] for row in page.history] for k, v in lines.items()}, high=high, marked=marked
        )
        for title, (lines, high) in charts.items()
    ]
    note = '<p class="note">Horizontal axis: epochs. The dashed line marks the best one.</p>' if marked else ""
    return f'<div class="charts">{"".join(drawn)}</div>{note}'


def _classes(page: RunPage) -> str:
    """Return the table of classes, from the highest IoU to the lowest; classes without a score come last."""
    if not page.best_epoch:
        return ""
    palette = create_palette(len(page.class_names), background_of(page.class_names))
    further = {}
    if page.confusion is not None:
        scores = page.confusion.compute()
        share = scores.support / max(1, scores.support.sum())
        further = {"precision %": scores.precision, "recall %": scores.recall, "pixels %": share}
    order = sorted(range(len(page.iou)), key=lambda i: -1.0 if math.isnan(page.iou[i]) else page.iou[i], reverse=True)
    head = ["<th>class</th>", '<th class="bar" aria-hidden="true"></th>']
    head += [f'<th class="number">{escape(name)}</th>' for name in ("IoU %", *further)]
    rows = []
    for i in order:
        numbers = [page.iou[i], *(column[i] for column in further.values())]
        width = 0.0 if math.isnan(page.iou[i]) else 100 * page.iou[i]
        colour = "#{:02x}{:02x}{:02x}".format(*palette[i])
        rows.append(
            f'<tr><td><span class="swatch" style="background:{colour}"></span>{escape(page.class_names[i])}</td>'
            f'<td class="bar" aria-hidden="true"><div><span style="width:{width:.1f}%"></span></div></td>'
            + "".join(f'<td class="number">{percent(number)}</td>' for number in numbers)
            + "</tr>"
        )
    return f'<div class="scroll"><table class="classes"><tr>{"".join(head)}</tr>{"".join(rows)}</table></div>'


def _confusions(page: RunPage) -> str:
    if page.confusion is None:
        return ""
    matrix = page.confusion.matrix
    wrong = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    largest = [
        (truth, said)
        for truth, said in zip(
            *np.unravel_index(np.argsort(-wrong, axis=None, kind="stable"), wrong.shape), strict=True
        )
        if wrong[truth, said]
    ][:CONFUSIONS]
    names, total = page.class_names, max(1, matrix.sum())
    rows = "".join(
        f"<tr><td>{escape(names[truth])}</td><td>{escape(names[said])}</td>"
        f'<td class="number">{percent(wrong[truth, said] / matrix[truth].sum())}</td>'
        f'<td class="number">{percent(wrong[truth, said] / total)}</td></tr>'
        for truth, said in largest
    )
    head = "<th>truth</th><th>predicted as</th>"
    head += "".join(f'<th class="number">{title}</th>' for title in ("% of the class", "% of all pixels"))
    table = f'<div class="scroll"><table class="plain"><tr>{head}</tr>{rows}</table></div>' if rows else ""
    picture = _figure(page.confusion_picture) if page.confusion_picture else ""
    return f'<div class="columns">{picture}{table}</div>'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.content).decode()
    return (
        f"<figure><figcaption>{escape(picture.caption)}</figcaption>"
        f'<img alt="{escape(picture.alt)}" src="data:image/{picture.kind};base64,{data}"></figure>'
    )


def _settings(page: RunPage) -> str:
    note = "These settings differ from the defaults." if page.changed else "All settings have their default values."
    changed = f'<p class="note">{note}</p>{_plain_table(page.changed)}'
    everything = f"<details><summary>All settings</summary>{_plain_table(page.settings)}</details>"
    return changed + (everything if page.settings else "")


def _plain_table(values: Mapping[str, str]) -> str:
    rows = [f'<tr><td>{escape(k)}</td><td class="value">{escape(v)}</td></tr>' for k, v in values.items()]
    return f'<table class="plain">{"".join(rows)}</table>' if rows else ""
