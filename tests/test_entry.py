"""The rim: what the user can do something about is one line and status 2, all else a traceback."""

import numpy as np
import pytest
import torch
from helpers import run_python
from safetensors import SafetensorError

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
    SafetensorError("do so"),
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


def test_a_name_in_no_encoding_can_be_printed(tmp_path):
    code = "from command_line import entry\nentry.run(lambda args: print('caf\\udce9'), None)"
    done = run_python(code, tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == "caf\\udce9", done.stderr
