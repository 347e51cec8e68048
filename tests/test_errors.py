"""Faults of the machine are never blamed on the file that was opened at that moment."""

import errno
import pickle

import pytest
import torch
from helpers.limits import no_more_files
from safetensors.torch import save_file

from segkit.data.coco_file import read_coco
from segkit.data.images import list_images
from segkit.data.palette import read_palette
from segkit.data.samples import name_image_in_errors
from segkit.demo.write import is_written
from segkit.errors import MachineError, as_segkit_error
from segkit.files import read_text
from segkit.inference import open_source
from segkit.inference.submission import check_sample
from segkit.models.model_file import read_header
from segkit.models.smp.files import read_smp_weights
from segkit.runs import check_writable
from segkit.training.checkpoint import read_checkpoint

READERS = {
    "text": read_text,
    "palette": read_palette,
    "COCO JSON": read_coco,
    "model": read_header,
    "SMP model": read_smp_weights,
    "checkpoint": read_checkpoint,
    "sample submission": lambda file: check_sample(file, []),
    "video": open_source,
    "folder of images": lambda file: list_images(file.parent),
    "out": lambda file: check_writable(file.parent),
    "demo": lambda file: is_written(file.parent, {}),
}


@pytest.mark.parametrize("kind", READERS)
def test_too_many_open_files_are_not_blamed_on_the_file(tmp_path, kind):
    file = tmp_path / "a.avi"
    save_file({"a": torch.zeros(1)}, file)
    with no_more_files(), pytest.raises((MachineError, OSError)) as caught:
        READERS[kind](file)
    fault = as_segkit_error(caught.value)
    assert isinstance(fault, MachineError)
    assert "Too many open files; allow more of them (ulimit -n), or try fewer `workers`" in str(fault)


@pytest.mark.parametrize("code", ["EMFILE", "ENFILE", "ENOMEM", "EIO", "ENOSPC", "ESTALE"])
def test_a_code_of_the_machine_is_its_fault_also_in_a_worker(code):
    number = getattr(errno, code)
    fault = as_segkit_error(OSError(number, "what happened", "a.png"))
    assert isinstance(fault, MachineError)
    assert "a.png: what happened" in str(pickle.loads(pickle.dumps(fault)))
    with pytest.raises(MachineError), name_image_in_errors(None, 0):
        raise OSError(number, "what happened")
    assert as_segkit_error(OSError(errno.EACCES, "not allowed", "a.png")) is None
