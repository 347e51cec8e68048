import pytest

from segkit.console import counted, table


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "epoch", "1 epoch"),
        (0, "epoch", "0 epochs"),
        (2, "validation image", "2 validation images"),
        (1, "class", "1 class"),
        (12, "class", "12 classes"),
        (2, "batch", "2 batches"),
    ],
)
def test_one_thing_is_not_several(number, noun, text):
    assert counted(number, noun) == text


def test_the_lines_of_a_table_end_without_blanks():
    assert table(["class", "IoU", "verdict"], [["can", "1.00", ""], ["box", "", "better"]]) == [
        "class   IoU  verdict",
        "can    1.00",
        "box           better",
    ]
