"""Which run is gone on with; what its state must be; that no two processes are at one."""

import os
from pathlib import Path

import pytest
from helpers import cpu, run_python

from common.errors import UserError
from data.order import ShuffledOrder
from training.checkpoint import save_state
from training.resuming import check_same_data, find_state
from training.run import Run


def state(name="a", **other):
    """As Run saves it, without networks."""
    return {
        "folder": "checkpoints/kind", "step": 3, "begun_as": 8, "fall_start": 7,
        "settings": {"name": name, "steps": 8, "batch": 4}, "ids": {"data": "1"}, "configs": {},
        "facts": {}, **other,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_name_that_is_taken_is_refused():
    assert find_state(None, "a", "kind") is None
    for file in ("a_epoch0001.safetensors", "b.state"):
        path = Path("checkpoints/kind", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with pytest.raises(UserError, match=f"--name {file[0]} is taken by .*{file}"):
            find_state(None, file[0], "kind")
        assert find_state(None, file[0], "other kind") is None


def test_a_state_is_found_by_age_name_and_path():
    for age, name in enumerate("abc"):
        path = f"checkpoints/kind/{name}.state"
        save_state(path, state(name, step=age))
        os.utime(path, (1000 - age, 1000 - age))
    assert find_state("newest", None, "kind")["step"] == 0
    assert find_state("c", None, "kind")["step"] == 2
    assert find_state("checkpoints/kind/b.state", None, "kind")["step"] == 1
    with pytest.raises(UserError, match="no run d in checkpoints/kind; there are a, b, c"):
        find_state("d", None, "kind")
    with pytest.raises(UserError, match="no .state file in checkpoints/other"):
        find_state("newest", None, "other")
    Path("checkpoints/other").mkdir()
    Path("checkpoints/kind/a.state").rename("checkpoints/other/a.state")
    with pytest.raises(UserError, match="a.state is not of the run a in checkpoints/other"):
        find_state("a", None, "other")
    with pytest.raises(UserError, match="no run checkpoints/kind/b.state in checkpoints/other"):
        find_state("checkpoints/kind/b.state", None, "other")


@pytest.mark.parametrize("key", [*state()])
@pytest.mark.parametrize("bad", [1.5, [], True])
def test_a_state_of_another_shape_is_one_sentence(key, bad):
    save_state("checkpoints/kind/a.state", state(**{key: bad}))
    with pytest.raises(UserError, match=r"a.state was not written by this version of the code"):
        find_state("a", None, "kind")


@pytest.mark.parametrize("name", ["b", "../../../escaped", "/tmp/escaped", "", None, 7])
def test_the_name_in_a_state_is_that_of_its_file(name):
    """Else it would write where it likes."""
    settings = {"name": name, "steps": 8}
    save_state("checkpoints/kind/a.state", state(settings=settings))
    with pytest.raises(UserError, match="a.state is not of the run a in checkpoints/kind"):
        find_state("newest", None, "kind")


def test_other_data_are_refused():
    check_same_data(None, "2")
    check_same_data(state(), "1")
    with pytest.raises(UserError, match="not those that the run a was begun with"):
        check_same_data(state(), "2")


def test_a_run_is_one_processes_alone(tmp_path):
    """Another process is refused while it is held, and not when it was given up."""
    run = Run("kind", "a", 9, "cosine", ShuffledOrder(9, 1, 0), cpu(), {}, {})
    code = "from common.files import lock; lock('fig/kind/a/.lock', 'refused'); print('held')"
    other = run_python(code, tmp_path)
    assert "refused" in other.stderr and not other.stdout
    with run.progress():
        pass
    assert run_python(code, tmp_path).stdout == "held\n"
