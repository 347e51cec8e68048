"""Class maps: how files are read, and what becomes of each name."""

import numpy as np
import pytest
from helpers.layouts import write_cityscapes, write_cvat_masks, write_taco

from segkit.class_map import classes_of, lines_without_class, map_names, read_class_map
from segkit.data import CocoSegmentation, FolderSegmentation, find_source
from segkit.errors import DataError, UsageError


@pytest.mark.parametrize(
    "text",
    [
        "Drink can,Metal\nFood Can,Metal\nCigarette,Background\nShoe,ignore\n",  # TACO's files have no header
        "\ufefforiginal,target\r\nDrink can, Metal\r\nFood Can,Metal\r\n\r\nCigarette,background\r\nShoe,Ignore\r\n",
        "# waste\nOriginal;Target\nDrink can;Metal\nFood Can;Metal\nCigarette;BACKGROUND\nShoe;ignore\n",
        'Drink can\t"Metal"\nFood Can\tMetal\nCigarette\tbackground\nShoe\tignore\n',
    ],
)
def test_class_maps_are_read_with_and_without_a_header(text, tmp_path):
    file = tmp_path / "map.csv"
    file.write_text(text, encoding="utf-8")
    expected = {"Drink can": "Metal", "Food Can": "Metal", "Cigarette": "background", "Shoe": "ignore"}
    assert read_class_map(file) == expected
    assert list(read_class_map(file)) == list(expected)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\na,c\n", "line 2: 'a' becomes 'c' here, but 'b' above"),
        ("a,b\nc\n", "line 2: expected a line such as Drink can,Metal, got .*c"),
        ("a,b,c\n", "line 1: expected a line"),
        ("a,\n", "line 1: expected a line"),
        ("original,target\n", "has no lines"),
        (b"a,\xff\n", "is not text in UTF-8"),
    ],
)
def test_class_maps_that_cannot_be_used(text, sentence, tmp_path):
    file = tmp_path / "map.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=sentence):
        read_class_map(file)


MAP = {"can": "metal", "tin": "metal", "bag": "plastic", "leaf": "background", "mud": "ignore"}


def test_names_become_their_classes_in_the_order_of_the_map():
    mapped = map_names(["bag", "Background", "mud", "tin", "can"], MAP, "a.json")
    assert mapped == {"bag": "plastic", "Background": "background", "mud": "ignore", "tin": "metal", "can": "metal"}
    assert classes_of(mapped, MAP) == ["metal", "plastic"]
    assert lines_without_class(["bag", "muds"], {"mud": "ignore", "bag": "bag"}) == ["'mud' (nearest: 'muds')"]


def test_names_that_were_mapped_before_stay():
    assert map_names(["metal", "background"], MAP, "") == {"metal": "metal", "background": "background"}
    assert map_names(["metal", "can"], MAP, "") == {"metal": "metal", "can": "metal"}
    chain = {"a": "b", "b": "c"}
    assert map_names(["a", "b"], chain, "") == {"a": "b", "b": "c"}  # a is no class, so these are the names before
    assert map_names(["b", "c"], chain, "") == {"b": "b", "c": "c"}  # c is no name, so these are the classes
    with pytest.raises(DataError, match=r"x\.json: each of its classes a, b is a name and a class of the class map"):
        map_names(["a", "b"], {"a": "b", "b": "a"}, "x.json")


def test_other_names_need_a_line_for_all():
    with pytest.raises(DataError, match=r"no line for 'cans' \(nearest: 'can'\); add a line for each, or"):
        map_names(["cans", "bag"], MAP, "a.json")
    assert map_names(["cans", "bag"], MAP | {"*": "*"}, "") == {"cans": "cans", "bag": "plastic"}
    assert map_names(["cans", "bag"], MAP | {"*": "background"}, "") == {"cans": "background", "bag": "plastic"}


def test_a_class_map_holds_for_regions(tmp_path):
    layout = write_taco(tmp_path)
    records = find_source(layout.path).splits["all"]()
    data = CocoSegmentation.inspect(records, class_map={"bus": "ignore", "road": "way"})
    assert data.class_names == ("background", "way")
    assert data.category_ids == {"way": 1}
    table = np.array([0, 255, 1], dtype=np.uint8)
    for i in range(len(data)):
        np.testing.assert_array_equal(data.mask(i), table[layout.masks[data.name(i).rpartition("/")[2]]])


def test_a_class_map_holds_for_masks_of_values_and_of_colours(tmp_path):
    layout = write_cvat_masks(tmp_path / "cvat")
    data = FolderSegmentation(find_source(layout.path).splits["all"](), class_map={"bus": "ignore", "road": "way"})
    assert data.class_names == ("background", "way")
    table = np.full(256, 255, dtype=np.uint8)
    table[[0, 2]] = 0, 1
    np.testing.assert_array_equal(data.mask(0), table[layout.masks["0.png"]])
    layout = write_cityscapes(tmp_path / "cityscapes")
    source = find_source(layout.path).splits["train"]()
    data = FolderSegmentation(source, class_map={"bus": "vehicle", "car": "vehicle", "*": "background"})
    assert data.class_names == ("background", "vehicle")
    table = np.full(256, 255, dtype=np.uint8)
    table[:19] = 0
    table[[13, 15]] = 1
    for item, i in zip(data.items, range(len(data)), strict=True):
        np.testing.assert_array_equal(data.mask(i), table[layout.masks[item.path.name]])
