"""Fonts that are made on the spot."""

from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen


def write_font(file: Path, characters: str) -> None:
    """Write a font in which each of the characters is a black square."""
    pen = TTGlyphPen(None)
    for place, point in enumerate([(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.lineTo if place else pen.moveTo)(point)
    pen.closePath()
    square, empty = pen.glyph(), TTGlyphPen(None).glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "square"])
    font.setupCharacterMap(dict.fromkeys(map(ord, characters), "square"))
    font.setupGlyf({".notdef": empty, "square": square})
    font.setupHorizontalMetrics(dict.fromkeys((".notdef", "square"), (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": file.stem, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(file)
