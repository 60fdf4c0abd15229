"""What this process may use of the machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import run_python

from common import machine
from common.machine import Load, cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux's")
def test_cores_are_those_that_the_process_may_use(tmp_path):
    code = "import os; from common.machine import cores; one = min(os.sched_getaffinity(0)); "
    code += "os.sched_setaffinity(0, {one}); print(cores())"
    assert run_python(code, tmp_path).stdout == "1\n"


def test_elsewhere_cores_are_all_there_are(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert cores() == 7


def busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not say its load")
def test_the_load_of_others_is_seen_and_ones_own_is_not(monkeypatch):
    monkeypatch.setattr(machine, "WINDOW", 0.5)
    load = Load()
    assert load.others() is None  # too soon
    busy(0.6)
    alone = load.others()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(1)
        beside = load.others()
        other.kill()
    assert alone is not None and beside > 0.3 and load.others() is None
    here = len(os.sched_getaffinity(0))
    assert 0 <= alone <= here and beside <= here + 0.1


def test_where_no_load_is_told_there_is_none(monkeypatch):
    monkeypatch.setattr(machine, "_busy", lambda: None)
    monkeypatch.setattr(machine, "WINDOW", 0)
    assert Load().others() is None
