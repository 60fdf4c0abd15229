"""The rim: what the user can do something about is one line and status 2, all else a traceback."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from helpers import ROOT, run_python

from command_line import entry
from common.errors import UserError


class Special(UserError):
    """A UserError of its own kind."""


def raise_(error):
    raise error


def test_an_error_for_users_is_a_value_error():
    """Whoever imports the project need not know the type."""
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize("error", [
    UserError("do so"), Special("do so"), OSError("do so"), FileNotFoundError("do so"),
])  # fmt: skip
def test_an_error_for_users_is_one_line_and_status_2(monkeypatch, capsys, error):
    monkeypatch.setattr("sys.argv", ["/some/where/script.py"])
    with pytest.raises(SystemExit) as end:
        entry.run(lambda args: raise_(error), None)
    assert end.value.code == 2
    assert capsys.readouterr().err == "script.py: error: do so\n"


@pytest.mark.parametrize("fault", [
    ValueError, KeyError, TypeError, RuntimeError, AssertionError, AttributeError,
])  # fmt: skip
def test_a_fault_of_the_program_is_not_swallowed(capsys, fault):
    with pytest.raises(fault, match="fault"):
        entry.run(lambda args: raise_(fault("fault")), None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("where", [
    "def main(args): next(x for x in [0] if refuse())",
    "def main(args): list(map(lambda x: refuse(), [0]))",
    "def main(args):\n    try: 1 / 0\n    except ZeroDivisionError: refuse()",
    "class A:\n    def __init__(self): refuse()\ndef main(args): A()",
])  # fmt: skip
def test_wherever_an_error_for_users_is_raised_it_is_one_line(tmp_path, where):
    code = "from common.errors import UserError\nfrom command_line import entry\n"
    code += f"def refuse(): raise UserError('do so')\n{where}\nentry.run(main, None)"
    done = run_python(code, tmp_path)
    assert done.returncode == 2 and done.stderr == "-c: error: do so\n"


@pytest.mark.parametrize("fault", ["int('x')", "values.size(None)"])
def test_programming_errors_keep_their_traceback(tmp_path, fault):
    """Not even those that our own files raise are all meant for users."""
    code = "from command_line import entry, values\n"
    code += f"entry.run(lambda args: {fault}, None)"
    done = run_python(code, tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_ctrl_c_is_a_word_and_status_130(capsys):
    with pytest.raises(SystemExit) as end:
        entry.run(lambda args: raise_(KeyboardInterrupt()), None)
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_main_is_given_the_arguments():
    got = []
    entry.run(got.append, "arguments")
    assert got == ["arguments"]


@pytest.mark.parametrize("error", [
    "torch.empty(10**15)", "np.empty(10**15)",
    "raise_(torch.OutOfMemoryError('CUDA out of memory.'))",
    "raise_(RuntimeError('MPS backend out of memory (MPS allocated: 5.10 GB)'))",
    "raise_(RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate'))",
])  # fmt: skip
def test_out_of_memory_says_what_needs_less(capsys, error):
    places = {"torch": torch, "np": np, "raise_": raise_}
    with pytest.raises(SystemExit) as end:
        entry.run(lambda args: eval(error, places), None)
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "error: out of memory; a smaller --batch" in lines[0]


def test_dead_workers_are_one_line(capsys):
    """torch's message where a container has little shared memory."""
    bus_error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is ..")
    with pytest.raises(SystemExit):
        entry.run(lambda args: raise_(bus_error), None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "--workers 0" in lines[0]


def begun(code, cwd, shell="{}", **env):
    """The end of a script that begins as ours do, by this code, through a shell; seconds, no torch.
    `parse` is what entry.begin is given."""
    path = cwd / "script.py"
    path.write_text(
        "import sys, time\nfrom command_line import entry\nfrom common.errors import UserError\n"
        f"def main(args):\n{textwrap.indent(code, '    ')}\n"
        "entry.run(main, entry.begin(lambda: None))\n"
    )
    command = shell.format(f"{sys.executable} script.py")
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )


def test_a_name_in_no_encoding_can_be_printed(tmp_path):
    done = begun("print('caf\\udce9')", tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == "caf\\udce9", done.stderr


SPEAK = """
for i in range(20_000):
    print(i, flush=True)
    print(i, file=sys.stderr, flush=True)
open("ended", "w").close()
"""


@pytest.mark.parametrize("shell", [
    "{} 2>&1 | head -1", "{} >&- 2>&-", "{} > /dev/full 2> /dev/full", "{} 2>&1 | true",
    "{} <&- >&- 2>&-",
])  # fmt: skip
def test_what_a_program_says_never_ends_it(tmp_path, shell):
    """A reader that has gone, a full disk, closed descriptors; and Python's own end is silent."""
    done = begun(SPEAK, tmp_path, shell + "; echo ${{PIPESTATUS[0]}} > status")
    assert (tmp_path / "ended").exists(), done.stderr
    assert (tmp_path / "status").read_text() == "0\n" and "Error" not in done.stderr


def test_a_closed_descriptor_is_not_taken_by_another_file(tmp_path):
    """What C code says on it would be written into that file."""
    code = "import os\nf = open('weights', 'w')\nassert f.fileno() > 2, f\nos.write(2, b'boo')"
    begun(code, tmp_path, "{} 2>&-")
    assert (tmp_path / "weights").read_text() == ""


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    """Of names and metadata: they would move the cursor, set the title or worse."""
    done = begun("print('a\\x1b[31mb\\x07')\nraise UserError('c\\x1b]0;d\\x9b\\ne')", tmp_path)
    assert done.stdout == "a\\x1b[31mb\\x07\n"
    assert done.stderr == "script.py: error: c\\x1b]0;d\\x9b e\n"


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("HUP", 129), ("INT", 130)])
def test_a_stop_runs_what_has_to_be_cleaned_up(tmp_path, name, status):
    code = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIG%s)\n    time.sleep(9)\n"
    done = begun(code % name + "finally:\n    open('cleaned', 'w')", tmp_path)
    assert done.returncode == status and (tmp_path / "cleaned").exists()
    assert len(done.stderr.splitlines()) == 1


def test_a_stop_while_importing_is_one_line(tmp_path):
    code = "import os, signal, sys\nfrom command_line import entry\nentry.begin(lambda: None)\n"
    code += "os.kill(os.getpid(), signal.SIGINT)"
    done = run_python(code, tmp_path)
    assert done.returncode == 130 and done.stderr == "interrupted\n"


def test_a_time_limit_holds_for_all_that_is_done(tmp_path):
    """Also while latents are cached: status 0."""
    code = "import time\nfrom types import SimpleNamespace\nfrom command_line import entry\n"
    code += "args = SimpleNamespace(deadline=time.monotonic() + 0.2)\n"
    code += "entry.run(lambda args: time.sleep(30), args)"
    done = run_python(code, tmp_path)
    assert done.returncode == 0 and done.stderr == "stopped by --time-limit\n"


def test_nohup_is_heeded(tmp_path):
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\nprint('still here')"
    assert begun(code, tmp_path, "nohup {}").stdout == "still here\n"


@pytest.mark.parametrize(("size", "status"), [("2", 2), ("1", 0), ("", 0), ("many", 2)])
def test_a_part_of_what_torchrun_sets_is_refused(tmp_path, size, status):
    """Each of several processes that do not know of each other would train for itself."""
    done = begun("print('trained')", tmp_path, WORLD_SIZE=size)
    assert done.returncode == status and ("with torchrun" in done.stderr) == bool(status)


def test_only_the_first_of_several_speaks_until_something_fails(tmp_path):
    others = {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "1"}
    for rank, said in (("0", "trained\n"), ("1", "")):
        done = begun("print('trained')", tmp_path, RANK=rank, MASTER_ADDR="here", **others)
        assert done.stdout == said and done.returncode == 0 and not done.stderr
        done = begun("1 / 0", tmp_path, RANK=rank, MASTER_ADDR="here", **others)
        assert f"rank {rank}: error: ZeroDivisionError: division by zero" in done.stderr
        assert "Traceback" in done.stderr and done.returncode == 1


def test_a_backend_for_notebooks_does_not_decide_whether_a_script_starts(tmp_path):
    backend = "module://matplotlib_inline.backend_inline"
    assert begun("import matplotlib.figure", tmp_path, MPLBACKEND=backend).returncode == 0
