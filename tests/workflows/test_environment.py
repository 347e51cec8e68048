"""env.json: what a run ran on."""

import json
import os
import time
from datetime import datetime, timedelta

import torch

from segkit.workflows.predictors import pick_workers
from segkit.workflows.run import write_environment


def test_a_resumed_run_keeps_its_earlier_environments(tmp_path):
    device, file = torch.device("cpu"), tmp_path / "env.json"
    runs = []
    for number in range(3):
        runs.append({**write_environment(file, device), "number": number})
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, "number": number}))
    content = json.loads(file.read_text())
    assert content.pop("earlier") == runs[:2]
    assert content == runs[2]
    file.write_text("{")
    write_environment(file, device)
    assert "earlier" not in json.loads(file.read_text())


def test_a_run_starts_on_systems_that_do_not_report_the_cores_of_a_process(tmp_path, monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert write_environment(tmp_path / "env.json", torch.device("cpu"))["cores"] == os.cpu_count()
    assert pick_workers(None) >= 1


def test_a_time_zone_that_is_none_is_no_mistake_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "XYZ-99")
    time.tzset()
    try:
        started = write_environment(tmp_path / "env.json", torch.device("cpu"))["started"]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert datetime.fromisoformat(started).utcoffset() == timedelta(0)
    assert abs(datetime.fromisoformat(started).timestamp() - time.time()) < 3600
