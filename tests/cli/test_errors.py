"""Errors that end in a sentence, those that keep their traceback, and output that takes no more."""

import io
import sys
from pathlib import Path

import pytest
from segkit.cli.output import output_may_close
from test_train_infer import fails, train_arguments

from segkit.cli import train
from segkit.data import images

FULL = Path("/dev/full")
FROM_WORKER = """Caught {kind} in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "/somewhere/torch/utils/data/_utils/worker.py", line 349, in _worker_loop
    data = fetcher.fetch(index)
  File "{file}", line 117, in read_image
    raise {kind}(
    ...<2 lines>...
    )
{module}{kind}: {message}
"""


def raising(error):
    def stand_in(*args, **options):
        raise error

    return stand_in


def from_worker(kind, message, file, module=""):
    return kind(FROM_WORKER.format(kind=kind.__name__, message=message, file=file, module=module))


def test_data_errors_of_a_worker_are_a_sentence_however_python_draws_their_lines(monkeypatch, capsys):
    error = from_worker(images.DataError, "a.jpg is damaged", images.__file__, "segkit.data.images.")
    monkeypatch.setattr(train, "train", raising(error))
    assert fails(train, "--data", "x.json") == 3
    assert capsys.readouterr().err == "segkit train: error: a.jpg is damaged\n"


def test_a_workers_error_that_is_no_fault_of_the_data_keeps_its_traceback(monkeypatch):
    error = from_worker(RuntimeError, "image 'a.jpg': no such key", "/somewhere/transform.py")
    monkeypatch.setattr(train, "train", raising(error))
    with pytest.raises(RuntimeError, match=r"image 'a\.jpg': no such key"):
        train.main(["--data", "x.json"])


def test_memory_that_runs_out_in_a_worker_is_a_sentence(monkeypatch, capsys):
    error = from_worker(RuntimeError, "DefaultCPUAllocator: can't allocate memory", "/somewhere/transform.py")
    monkeypatch.setattr(train, "train", raising(error))
    assert fails(train, "--data", "x.json") == 1
    assert "memory ran out; try half the --batch-size" in capsys.readouterr().err


def test_a_path_that_the_system_refuses_is_a_sentence(shapes, tmp_path, capsys):
    assert fails(train, *train_arguments(shapes, tmp_path / ("x" * 300))) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "File name too long" in error


@pytest.mark.skipif(not FULL.exists(), reason="needs a file that is always full")
def test_output_to_a_full_disk_is_dropped(monkeypatch):
    with FULL.open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with output_may_close():
            print("x" * 100_000)
            print("the work goes on", flush=True)
        assert sys.stdout is stream


def test_names_that_the_output_cannot_encode_are_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with output_may_close():
        print("猫")
    assert written.getvalue() == b"\\u732b\n"
