import pytest

from segkit.errors import UsageError
from segkit.names import check_known, nearest, unknown


def test_the_nearest_name_is_the_one_that_is_spelt_most_alike():
    assert nearest("unett", ["fpn", "unet"]) == "unet"
    assert nearest("qqq", ["fpn", "unet"]) is None


def test_other_words_lead_to_the_known_name_if_it_is_known():
    words = {"encoder": "backbone"}
    assert nearest("encoder", ["backbone"], words) == "backbone"
    assert nearest("encoder", ["model"], words) is None


def test_the_error_lists_the_known_names_and_suggests_one():
    assert str(unknown("loss", "dise", ["ce", "dice"])) == "unknown loss 'dise'; did you mean 'dice'? Known: ce, dice"
    assert str(unknown("loss", "qqq", ["ce", "dice"])) == "unknown loss 'qqq'. Known: ce, dice"
    assert str(unknown("loss", "qqq", [])) == "unknown loss 'qqq'. Known: none"
    check_known("loss", "ce", ["ce"])
    with pytest.raises(UsageError, match="did you mean 'ce'"):
        check_known("loss", "cee", ["ce"])
