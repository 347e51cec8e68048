import os
import pickle

import numpy as np
import pytest

from segkit.data.coco import Packed

VALUES = [("a", 1), [np.arange(3.0)], None, {"x": b"\0"}]


def test_what_goes_in_comes_out():
    packed = Packed(VALUES)
    assert len(packed) == 4
    assert packed[0] == packed[-4] == ("a", 1)
    assert packed[1][0].tolist() == [0, 1, 2]
    assert [type(value) for value in packed] == [type(value) for value in VALUES]
    assert pickle.loads(pickle.dumps(packed))[3] == {"x": b"\0"}
    assert list(Packed([])) == []


def test_there_is_nothing_beyond_its_end():
    with pytest.raises(IndexError):
        Packed(VALUES)[4]


def private_megabytes():
    """Return the memory of this process that it does not share with others."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) / 1024


def growth_in_a_fork(values):
    """Return by how many MB a forked process grows while it reads everything."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        before = private_megabytes()
        for i in range(len(values)):
            _ = values[i]
        os.write(writing, str(private_megabytes() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return float(os.read(reading, 100))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux")
def test_reading_a_hundred_thousand_annotations_copies_no_memory_into_a_worker():
    lists = [[[float(i + k) for k in range(40)] for i in range(10)] for _ in range(10_000)]
    assert growth_in_a_fork(Packed(lists)) < 3
