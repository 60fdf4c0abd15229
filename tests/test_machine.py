"""What this process may use of the machine."""

import os

import pytest
from helpers import run_python

from common.machine import cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux's")
def test_cores_are_those_that_the_process_may_use(tmp_path):
    code = "import os; from common.machine import cores; one = min(os.sched_getaffinity(0)); "
    code += "os.sched_setaffinity(0, {one}); print(cores())"
    assert run_python(code, tmp_path).stdout == "1\n"


def test_elsewhere_cores_are_all_there_are(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert cores() == 7
