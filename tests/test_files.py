"""Files that are written whole or not at all."""

import csv
import errno
import json
import math
import os
import stat
import threading

import pytest

from segkit.errors import DataError, MachineError, MissingFileError, UsageError
from segkit.files import (
    parse_json,
    read_text,
    remove_leftovers,
    reserve,
    with_home,
    write_csv,
    write_json,
    write_records,
    write_whole,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", b"new", durable=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_file_that_does_not_read_back_does_not_replace_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    sync = os.fsync

    def damage(handle):
        sync(handle)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, b"?")

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(OSError, match="does not read back as it was written"):
        write_whole(tmp_path / "a", b"new", durable=True)
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "a.json is not valid JSON: Expecting property name"),
        (b"\xff", "a.json is not valid JSON: .* invalid start byte"),
        ("[" * 100_000, "a.json cannot be read: its lists and objects are nested too deeply"),
        ("[" + "9" * 5000 + "]", "a.json cannot be read: it has a number with thousands of digits"),
    ],
    ids=["cut", "bytes", "nested", "digits"],
)
def test_a_json_that_cannot_be_read_is_a_sentence(content, message):
    with pytest.raises(UsageError, match=message):
        parse_json(content, "a.json")
    with pytest.raises(DataError, match=message):
        parse_json(content, "a.json", DataError)
    assert parse_json(b"\xef\xbb\xbf[1]", "a.json") == [1]


def test_a_new_file_has_the_usual_rights(tmp_path):
    write_whole(tmp_path / "a", b"new", durable=True)
    (tmp_path / "b").write_text("new")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOTSUP])
def test_without_links_the_previous_file_is_copied(tmp_path, monkeypatch, number):
    def no_links(*paths):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    write_whole(tmp_path / "a", b"1", previous=tmp_path / "b", durable=True)
    write_whole(tmp_path / "a", b"2", previous=tmp_path / "b", durable=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "2", "b": "1"}


def test_a_file_system_that_cannot_sync_folders_is_no_error(tmp_path, monkeypatch):
    def sync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", sync)
    write_whole(tmp_path / "a", b"1", durable=True)
    assert (tmp_path / "a").read_bytes() == b"1"


def test_only_leftovers_of_killed_writers_are_removed(tmp_path):
    ours = [".last.pt.123.456.tmp.pt", ".last.pt.123.tmp", ".best.safetensors.1.2.tmp.safetensors"]
    users = [".last.pt.backup", ".last.pt.tmp", ".last.pt.1.2.tmp2", "last.pt.1.2.tmp.pt", ".results.csv.1.2.tmp.csv"]
    for name in ours + users:
        (tmp_path / name).write_text("half")
    (tmp_path / ".last.pt.1.2.tmp").mkdir()
    remove_leftovers(tmp_path, "last.pt", "best.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*users, ".last.pt.1.2.tmp"])


def test_two_writers_of_one_file_never_share_a_temporary_file(tmp_path):
    # Process 1 of two containers has the same number in both.
    def write(path):
        path.write_bytes(b"outer")
        write_whole(tmp_path / "a", b"inner")

    write_whole(tmp_path / "a", write)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"outer")]


def test_a_function_writes_at_a_path_with_the_same_suffix_and_a_failure_leaves_the_old_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")

    def fail(path):
        assert path.suffix == ".png"
        path.write_bytes(b"half")
        raise OSError("the writer failed")

    with pytest.raises(OSError, match="the writer failed"):
        write_whole(tmp_path / "a.png", fail)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"old")]
    write_whole(tmp_path / "a.png", lambda path: path.write_bytes(b"new"))
    assert (tmp_path / "a.png").read_bytes() == b"new"


def test_the_longest_name_that_a_file_system_takes_can_be_written(tmp_path):
    name = "x" * 251 + ".png"
    write_whole(tmp_path / name, "whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_threads_that_write_the_same_file_leave_one_whole_file(tmp_path):
    texts = [str(i) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=write_whole, args=(tmp_path / "a", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() in texts


def test_tables_keep_commas_quotes_and_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    write_csv(tmp_path / "a.csv", ["image", "note"], [[name, 'a "b", c']])
    assert (tmp_path / "a.csv").read_bytes() == b'image,note\ncaf\xe9.jpg,"a ""b"", c"\n'
    write_records(tmp_path / "b.csv", [{"x": 1, "y": 2}, {"y": 4, "x": 3}])
    assert list(csv.reader((tmp_path / "b.csv").open())) == [["x", "y"], ["1", "2"], ["3", "4"]]
    write_records(tmp_path / "c.csv", [])
    assert not (tmp_path / "c.csv").exists()


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, None, "é"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, None, "é"]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": math.nan})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, None, "é"]}


def test_a_text_that_cannot_be_read_is_a_sentence_with_the_file(tmp_path):
    with pytest.raises(MissingFileError, match=r"there is no file .*none\.txt"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(UsageError, match="Is a directory"):
        read_text(tmp_path)
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"latin1\.txt: it is not text in UTF-8"):
        read_text(tmp_path / "latin1.txt")
    (tmp_path / "bom.txt").write_text("a", encoding="utf-8-sig")
    assert read_text(tmp_path / "bom.txt") == "a"


@pytest.mark.parametrize("content", [b"new", lambda file: file.write_bytes(b"new"), "new"])
def test_an_error_of_the_disk_names_the_file_and_not_the_temporary_one(tmp_path, monkeypatch, content):
    def full(*paths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_whole(tmp_path / "a", content)
    assert (raised.value.filename, raised.value.errno) == (str(tmp_path / "a"), errno.ENOSPC)
    assert str(raised.value) == f"[Errno 28] No space left on device: '{tmp_path / 'a'}'"


def test_room_is_reserved_on_the_disk(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        reserve(file, 3_000_000, tmp_path, "probabilities")
    stat = (tmp_path / "a").stat()
    assert stat.st_size == 3_000_000
    if hasattr(os, "posix_fallocate"):
        assert stat.st_blocks * 512 >= 3_000_000  # a file with holes has no blocks


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="macOS and Windows reserve nothing")
def test_room_that_the_disk_lacks_is_one_sentence(tmp_path):
    with (
        (tmp_path / "a").open("wb") as file,
        pytest.raises(MachineError, match=r"probabilities need \d+ MB on"),
    ):
        reserve(file, 2**60, tmp_path, "probabilities")


def test_a_user_without_a_home_folder_must_write_whole_paths(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what Python does then
    assert with_home("a/~/b") == "a/~/b"
    with pytest.raises(UsageError, match="this user has no home folder for the ~ in ~/runs"):
        with_home("~/runs")
