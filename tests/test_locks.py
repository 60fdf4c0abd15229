"""A lock has one holder, and none when its holder is gone."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

from common.errors import UserError
from common.locks import Lock

HOLD = "from pathlib import Path; from common.locks import Lock; Lock(Path('l'), 'held'); "


def holder(cwd, then):
    """A process that holds the lock l in folder cwd and says so."""
    command = [sys.executable, "-c", HOLD + "print('held', flush=True); " + then]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_given_up_by_a_holder_that_is_killed(tmp_path):
    """Also while a process that it has forked lives on."""
    forks = "import os, time; os.fork(); os.write(1, b'%d\\n' % os.getpid()); time.sleep(60)"
    with holder(tmp_path, forks) as process:
        pids = {int(process.stdout.readline()) for _ in range(2)}
        with pytest.raises(UserError, match="it is held"):
            Lock(tmp_path / "l", "it is held")
        process.send_signal(signal.SIGKILL)
        process.wait()
        (child,) = pids - {process.pid}
        Lock(tmp_path / "l", "it is held").release()
        os.kill(child, signal.SIGKILL)


def test_a_lock_leaves_nothing_behind(tmp_path):
    lock = Lock(tmp_path / "l", "")
    assert (tmp_path / "l").exists()
    lock.release()
    lock.release()
    assert not (tmp_path / "l").exists()
    assert holder(tmp_path, "pass").wait() == 0 and not (tmp_path / "l").exists()


def test_a_pipe_of_its_name_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "l")
    with pytest.raises(OSError):
        Lock(tmp_path / "l", "")
