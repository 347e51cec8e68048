import unicodedata

import numpy as np
import pytest
from helpers.fonts import write_font

from segkit import text
from segkit.visualize import create_palette, grid, legend


def drawn(line: str, **options) -> np.ndarray:
    picture = np.full((40, 200, 3), 255, dtype=np.uint8)
    text.draw_text(picture, line, (10, 30), **options)
    return picture


def test_letters_stand_on_the_baseline_in_their_colour_and_width():
    picture = drawn("HI", size=20, colour=(200, 0, 0))
    rows, columns = np.nonzero((picture != 255).any(2))
    assert rows.max() == 29
    assert rows.min() == pytest.approx(30 - 0.73 * 20, abs=1.5)  # the capitals of DejaVu Sans
    assert columns.min() >= 10
    assert columns.max() <= 10 + text.text_width("HI", 20)
    assert picture.min((0, 1)).tolist() == [200, 0, 0]


@pytest.mark.parametrize("place", [(-8, 30), (180, 30), (10, 3), (10, 50), (-900, 30), (10, 900)])
def test_text_outside_the_picture_is_cut(place):
    whole = np.full((140, 500, 3), 255, dtype=np.uint8)
    text.draw_text(whole, "wide text", (place[0] + 100, place[1] + 50))
    cut = np.full((40, 200, 3), 255, dtype=np.uint8)
    text.draw_text(cut, "wide text", place)
    assert np.array_equal(cut, whole[50:90, 100:300])


def test_a_name_is_drawn_by_the_fonts_that_have_its_characters(system_fonts):
    write_font(system_fonts / "b.ttf", "종이유리")
    write_font(system_fonts / "NanumGothic.ttf", "종이")
    write_font(system_fonts / "NanumGothicBold.ttf", "종이")
    (system_fonts / "damaged.ttf").write_bytes(b"no font")
    assert [file.name for file in text.font_files(["종이 (paper)"])] == ["NanumGothic.ttf"]
    assert [file.name for file in text.font_files(["can", "유리"])] == ["b.ttf"]
    assert text.drawable_names(["background", "종이 (paper)", "塑"]) == ["background", "종이 (paper)", "label 2"]
    picture = drawn("종i", size=20)
    assert (picture[15:28, 12:28] == text.INK).all(), "a black square, then a letter"
    assert not (picture[15:28, 30:36] == text.INK).all()
    assert np.array_equal(picture, drawn(unicodedata.normalize("NFD", "종i"), size=20))


def test_a_font_of_last_resort_draws_nothing(system_fonts):
    write_font(system_fonts / "LastResort.ttf", "종")
    assert text.missing_in("종") == {"종"}


def test_what_no_font_has_is_a_number_in_legends_and_a_question_mark_elsewhere(system_fonts, caplog):
    palette, names = create_palette(3), ("background", "종이", "can")
    assert np.array_equal(legend(names, [1], palette, 150), legend(("", "label 1"), [1], palette, 150))
    picture = np.zeros((20, 90, 3), np.uint8)
    assert np.array_equal(grid([picture], 1, captions=["종.jpg"]), grid([picture], 1, captions=["?.jpg"]))
    (record,) = caplog.records
    assert record.getMessage().endswith(f"copy its file to {system_fonts}")


@pytest.mark.parametrize("line", ["", " ", "a\nb\tc\x00", "e\u0301", "\u0301", "قمامة", "w" * 5000, "\udce9"])
def test_no_text_fails(line):
    assert drawn(line).shape == (40, 200, 3)
    assert text.text_width(text.shorten(line, 60)) <= 60


def test_a_long_text_keeps_its_start_and_its_end():
    assert text.shorten("photograph.jpg", 500) == "photograph.jpg"
    short = text.shorten("photograph of something.jpg", 90)
    assert short.startswith("photo")
    assert short.endswith(".jpg")


def test_without_matplotlib_english_is_drawn(system_fonts, monkeypatch):
    monkeypatch.setattr(text, "own_font", lambda: None)
    text._parts.cache_clear()
    assert (drawn("paper") < 100).any()
    assert text.missing_in("paper") == set()
