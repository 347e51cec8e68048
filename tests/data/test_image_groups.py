import pytest

from segkit.data.image_groups import group_images, propose_group_by, sources_by_name
from segkit.errors import UsageError


def test_groups_join_by_file_label_and_pairs():
    names = ["e.jpg", "a.jpg", "x/a.jpg", "./a.jpg", "d.jpg", "b.jpg"]
    assert group_images(names).tolist() == [3, 0, 4, 0, 2, 1]
    assert group_images(names, labels=["s", None, None, "t", "t", "s"]).tolist() == [1, 0, 2, 0, 0, 1]
    assert group_images(names, pairs=[(5, 4), (4, 2)]).tolist() == [2, 0, 1, 0, 1, 1]
    assert group_images([]).tolist() == []


def test_a_long_chain_of_pairs_is_one_group():
    pairs = [(i, i + 1) for i in range(4999)]
    assert not group_images([f"{i:05}" for i in range(5000)], pairs=reversed(pairs)).any()


HASHES = [f"{i:032x}" for i in range(4)]


def test_copies_by_roboflow_have_the_source_before_rf_whatever_their_folder():
    names = [f"train/a_jpg.rf.{HASHES[0]}.jpg", f"valid/a_jpg.rf.{HASHES[1]}.jpg", "a_jpg.jpg", "x.rf.jpg"]
    assert sources_by_name(names) == ["a_jpg", "a_jpg", None, None]
    assert sources_by_name(names, "none") == [None] * 4


def test_a_pattern_finds_the_source_by_its_group_or_its_match():
    names = ["vid_01/frame_1.jpg", "vid_02/frame_1.jpg", "vid_01/frame_2.jpg", "photo.jpg"]
    assert sources_by_name(names, r"regex:vid_\d+") == ["vid_01", "vid_02", "vid_01", None]
    assert sources_by_name(names, r"regex:vid_(\d+)") == ["01", "02", "01", None]
    with pytest.raises(UsageError, match="is found in no name of an image, such as vid_01"):
        sources_by_name(names, "regex:clip")
    with pytest.raises(UsageError, match="is not a regular expression"):
        sources_by_name(names, "regex:(")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("vid_0000{source}_frame0000{i}.jpg", r"regex:vid_\d+"),
        ("Clip-{source}/{i}.png", r"regex:Clip\-\d+"),
        ("beach{source}_frame_{i}.jpg", "regex:(.+)[_-]frame"),
        ("batch_{source}/{i}.jpg", None),
        ("IMG_{source}{i}.jpg", None),
        ("scene{source}{i}.jpg", None),  # each name has a number of its own
    ],
)
def test_a_pattern_is_proposed_if_names_look_like_frames(name, pattern):
    names = [name.format(source=source, i=i) for source in range(3) for i in range(4)]
    found = propose_group_by(names)
    assert found == pattern
    if found:
        assert len(set(sources_by_name(names, found))) == 3
