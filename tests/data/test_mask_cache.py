import os
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from segkit.data.mask_cache import MaskCache, default_folder

LONG_AGO = (time.time() - 61 * 24 * 3600,) * 2
MASK = np.arange(256, dtype=np.uint8).reshape(8, 32)


def refuse():
    raise AssertionError("the mask was made again")


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_mask_is_made_once(in_memory, tmp_path):
    cache = MaskCache(None if in_memory else tmp_path, "key")
    assert np.array_equal(cache.get(3, lambda: MASK), MASK)
    assert np.array_equal(cache.get(3, refuse), MASK)


def test_files_outlive_the_process_and_each_key_has_its_own(tmp_path):
    MaskCache(tmp_path, "old annotations").get(0, lambda: MASK)
    assert np.array_equal(MaskCache(tmp_path, "old annotations").get(0, refuse), MASK)
    assert np.array_equal(MaskCache(tmp_path, "new annotations").get(0, lambda: MASK + 1), MASK + 1)


def test_masks_of_other_keys_go_when_nobody_has_used_them_for_long(tmp_path):
    caches = {key: MaskCache(tmp_path, key) for key in ("old", "recent")}
    for cache in caches.values():
        cache.get(0, lambda: MASK)
    os.utime(caches["old"].folder, LONG_AGO)
    MaskCache(tmp_path, "new")
    assert not caches["old"].folder.exists()
    MaskCache(tmp_path, "recent").get(0, refuse)


def test_a_folder_that_the_cache_did_not_make_is_never_touched(tmp_path):
    content = {"0123456789abcdef/0/0.png": "mine", "somebody's/notes.txt": "mine", "fedcba9876543210/CACHEDIR.TAG": "?"}
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
        for folder in (tmp_path / name).parents[:-2]:
            os.utime(folder, LONG_AGO)
    linked = MaskCache(tmp_path / "elsewhere", "old").folder
    os.utime(linked, LONG_AGO)
    (tmp_path / "0000000000000000").symlink_to(linked)
    MaskCache(tmp_path, "new")
    assert {name: (tmp_path / name).read_text() for name in content} == content
    assert linked.is_dir()


def test_a_users_file_in_an_old_folder_of_the_cache_stays(tmp_path):
    cache = MaskCache(tmp_path, "old")
    cache.get(0, lambda: MASK)
    (cache.folder / "0" / "corrected by hand.png").write_text("mine")
    os.utime(cache.folder, LONG_AGO)
    MaskCache(tmp_path, "new")
    assert [path.name for path in cache.folder.rglob("*") if path.is_file()] == ["corrected by hand.png"]


def test_files_of_killed_processes_go_and_those_of_running_ones_stay(tmp_path):
    cache = MaskCache(tmp_path, "key")
    cache.get(0, lambda: MASK)
    part = cache.folder / "0"
    for name in (".7.png.123.456.tmp.png", ".8.png.123.456.tmp.png", ".7.png.mine"):
        (part / name).write_bytes(b"half")
    os.utime(part / ".7.png.123.456.tmp.png", LONG_AGO)
    os.utime(part / ".7.png.mine", LONG_AGO)
    MaskCache(tmp_path, "key")
    assert sorted(path.name for path in part.iterdir()) == [".7.png.mine", ".8.png.123.456.tmp.png", "0.png"]


def test_the_folder_of_an_older_segkit_is_used_and_marked(tmp_path):
    cache = MaskCache(tmp_path, "key")
    cache.get(0, lambda: MASK)
    (cache.folder / "CACHEDIR.TAG").unlink()
    MaskCache(tmp_path, "key").get(0, refuse)
    assert (cache.folder / "CACHEDIR.TAG").is_file()


def test_a_cache_that_is_opened_counts_as_used(tmp_path):
    folder = MaskCache(tmp_path, "key").folder
    os.utime(folder, (0, 0))
    MaskCache(tmp_path, "key")
    MaskCache(tmp_path, "new")
    assert folder.exists()


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n"])
def test_a_damaged_file_is_made_again(content, tmp_path):
    cache = MaskCache(tmp_path, "key")
    cache.get(0, lambda: MASK)
    (file,) = tmp_path.rglob("*.png")
    file.write_bytes(content)
    assert np.array_equal(cache.get(0, lambda: MASK), MASK)
    assert np.array_equal(cache.get(0, refuse), MASK)


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "file").write_text("")
    cache = MaskCache(tmp_path / "file" / "below", "key")
    assert np.array_equal(cache.get(0, lambda: MASK), MASK)


def read_many(folder):
    cache = MaskCache(folder, "key")
    return all(
        np.array_equal(cache.get(i % 7, lambda i=i: np.roll(MASK, i % 7)), np.roll(MASK, i % 7)) for i in range(200)
    )


def test_several_processes_may_fill_it_together(tmp_path):
    with ProcessPoolExecutor(3) as pool:
        assert all(pool.map(read_many, [tmp_path] * 3))
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_default_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "segkit" / "masks"


def test_a_user_without_a_home_folder_keeps_no_masks_and_is_told(monkeypatch, caplog):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what Python does then
    with caplog.at_level("INFO", logger="segkit"):
        assert default_folder() is None
    assert "no home folder: masks are drawn each time; `mask_cache=DIR` keeps them" in caplog.text
