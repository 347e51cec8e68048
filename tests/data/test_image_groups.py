from segkit.data.image_groups import group_images


def test_groups_join_by_file_label_and_pairs():
    names = ["e.jpg", "a.jpg", "x/a.jpg", "./a.jpg", "d.jpg", "b.jpg"]
    assert group_images(names).tolist() == [3, 0, 4, 0, 2, 1]
    assert group_images(names, labels=["s", None, None, "t", "t", "s"]).tolist() == [1, 0, 2, 0, 0, 1]
    assert group_images(names, pairs=[(5, 4), (4, 2)]).tolist() == [2, 0, 1, 0, 1, 1]
    assert group_images([]).tolist() == []


def test_a_long_chain_of_pairs_is_one_group():
    pairs = [(i, i + 1) for i in range(4999)]
    assert not group_images([f"{i:05}" for i in range(5000)], pairs=reversed(pairs)).any()
