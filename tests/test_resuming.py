"""Which run is gone on with; what its state must be; that no two processes are at one."""

import os
from pathlib import Path

import pytest
import torch
from helpers import run_python

from common.errors import UserError
from data.order import ShuffledOrder
from training.checkpoint import save_state
from training.resuming import check_same_data, find_state, in_batches_of, lock_run


def state(name="a", **other):
    """As Run saves it, without networks."""
    return {
        "folder": "checkpoints/kind", "step": 3, "begun_as": 8, "fall_start": 7,
        "settings": {"name": name, "steps": 8, "batch": 4}, "ids": {"data": "1"}, "configs": {},
        "valid_loss": 0.5, **other,
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
    with pytest.raises(UserError, match="belongs to checkpoints/kind/, not to checkpoints/other/"):
        find_state("checkpoints/kind/b.state", None, "other")


@pytest.mark.parametrize("key", [*state()])
@pytest.mark.parametrize("bad", ["x", -1, 10**30, [], True])
def test_a_state_of_another_shape_is_one_sentence(key, bad):
    save_state("checkpoints/kind/a.state", state(**{key: bad}))
    with pytest.raises(UserError, match=r"^checkpoints/kind/a.state [^\n]*$"):
        find_state("a", None, "kind")


@pytest.mark.parametrize("name", ["b", "../../../escaped", "/tmp/escaped", "", None, 7])
def test_the_name_in_a_state_is_that_of_its_file(name):
    """Else it would write where it likes."""
    settings = {"name": name, "steps": 8}
    save_state("checkpoints/kind/a.state", state(settings=settings))
    with pytest.raises(UserError, match="is of a run of another name|is damaged"):
        find_state("newest", None, "kind")


def test_other_data_are_refused():
    check_same_data(None, "2")
    check_same_data(state(), "1")
    with pytest.raises(UserError, match="not those that the run a was begun with"):
        check_same_data(state(), "2")


def test_a_smaller_batch_makes_more_steps_of_as_many_images():
    half = in_batches_of(state(), ShuffledOrder(100, 2, 0))
    assert (half["step"], half["begun_as"], half["settings"]["steps"]) == (6, 16, 16)
    assert in_batches_of(state(), ShuffledOrder(100, 4, 0)) == state()
    assert in_batches_of(state(), ShuffledOrder(3, 3, 0)) == state()  # 4 were never in a batch


def test_a_run_is_one_processes_alone(tmp_path):
    """Another process is refused while it is held, and not when it was given up."""
    folder = Path("checkpoints/kind")
    folder.mkdir(parents=True)
    code = "from pathlib import Path; from training.resuming import lock_run\n"
    code += "lock_run(Path('checkpoints/kind'), 'a', None); print('locked')"
    lock = lock_run(folder, "a", None)
    other = run_python(code, tmp_path)
    assert "another process is training the run a" in other.stderr and not other.stdout
    lock.release()
    assert run_python(code, tmp_path).stdout == "locked\n" and not list(folder.iterdir())


def test_a_run_that_went_on_after_its_state_was_read_is_refused():
    path = Path("checkpoints/kind/a.state")
    save_state(path, state())
    read = find_state("a", None, "kind")
    lock_run(path.parent, "a", read).release()
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match="another process has gone on with the run a"):
        lock_run(path.parent, "a", read)


@pytest.mark.parametrize("settings", [{"batch": 0}, {"batch": "x"}, {"steps": 0}, {"channels": 8}])
def test_settings_that_no_run_has_are_refused(settings):
    """Such as another width than that of its networks, which would be built for nothing."""
    settings = {**state()["settings"], "channels": 4, **settings}
    model = {"weight": torch.zeros(4, 3)}
    save_state("checkpoints/kind/a.state", state(settings=settings, model=model))
    with pytest.raises(UserError, match=r"checkpoints/kind/a.state[^\n]*start a new run"):
        find_state("a", None, "kind")


def test_an_older_copy_does_not_replace_a_state():
    save_state("checkpoints/kind/a.state", state(step=5))
    save_state("backup/a.state", state(step=2))
    with pytest.raises(UserError, match="backup/a.state would replace checkpoints/kind/a.state"):
        find_state("backup/a.state", None, "kind")
    Path("checkpoints/kind/a.state").unlink()
    assert find_state("backup/a.state", None, "kind")["step"] == 2
