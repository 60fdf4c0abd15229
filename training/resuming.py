"""Which run is begun or gone on with, and that no other process is at it."""

from pathlib import Path

import torch

from common.errors import UserError
from common.launch import is_first, launched
from common.locks import Lock
from data.order import ShuffledOrder
from training import checkpoint, distributed


def find_state(resume: str | None, name: str | None, task: str) -> dict | None:
    """The state of the run to go on with; None for a new run, which `resume` None begins.

    resume: "newest", a run's name or a .state file. name: of the new run, which is gone on with
    where torchrun has begun anew. task: what is trained; its runs are in checkpoints/task. All
    processes read the file that the first one finds. Raises UserError when there is no such run, or
    when a new one would overwrite an old one's files.
    """
    folder = Path("checkpoints", task)
    # Each machine counts restarts for itself.
    restarted = distributed.most(launched().restarts) > 0
    path = distributed.firsts(_find(folder, resume, name, restarted) if is_first() else None)
    if path is None:
        return None
    read_at = path.stat().st_mtime_ns
    return {**load_checked(path, folder), "read": (path, read_at)}


def _find(folder: Path, resume: str | None, name: str | None, restarted: bool) -> Path | None:
    """The .state file to go on with, of a run in folder; None for a new run. restarted: whether
    torchrun has begun anew, so that the run may have states of its own by now."""
    begun = name if resume is None else Path(resume.removesuffix(".state")).name
    if restarted and (folder / f"{begun}.state").is_file():
        resume = begun
    if resume is None:
        check_free(folder, str(name))
        return None

    # One to go on with.
    states = checkpoint.checkpoints_in(folder, ".state")
    path = folder / f"{resume}.state"
    if resume == "newest":
        if not states:
            raise UserError(f"--resume: no .state file in {folder}")
        path = states[0]
    elif not path.is_file() and Path(resume).is_file():
        path = Path(resume)
    elif not path.is_file():
        there = ", ".join(state.stem for state in states[:5])
        raise UserError(
            f"--resume: no run {resume} in {folder}" + f"; there are {there}" * bool(there)
        )
    own = folder / f"{path.stem}.state"
    if own.is_file() and not own.samefile(path):
        raise UserError(f"--resume {path} would replace {own}; move that away first")
    return path


def check_free(folder: Path, name: str) -> None:
    """Raise UserError where a run of this name has files."""
    taken = [*folder.glob(f"{name}_epoch*"), *folder.glob(f"{name}.state")]
    if taken:
        raise UserError(f"--name {name} is taken by {taken[0]}; choose another name")


def lock_run(folder: Path, name: str, state: dict | None) -> Lock:
    """Make a run this process's alone, in the folder of its checkpoints.

    Raises UserError where another process is at it, or was since its state was read.
    """
    lock = Lock(folder / f"{name}.lock", f"another process is training the run {name}")
    try:
        if state is None:
            check_free(folder, name)
        elif "read" in state and state["read"][0].stat().st_mtime_ns != state["read"][1]:
            raise UserError(f"another process has gone on with the run {name}; --resume it again")
    except UserError:
        lock.release()
        raise
    return lock


def load_checked(path: Path, folder: Path) -> dict:
    """The state of a run in folder. Raises UserError where it has not what Run takes from it;
    networks and optimizers are checked when they take their tensors, settings by their flags."""
    if not path.is_file():
        raise UserError(f"{path} is gone, from which a longer run would go on; keep its --steps")
    state = checkpoint.load_state(path)
    wanted = {
        "folder": str, "step": int, "begun_as": int, "fall_start": int, "settings": dict,
        "ids": dict, "configs": dict,
    }  # fmt: skip
    wrong = [k for k, kind in wanted.items() if type(state.get(k)) is not kind]
    if not isinstance(state.setdefault("valid_loss", None), float | None):
        wrong.append("valid_loss")
    numbers = [state["settings"].get(k, 1) for k in ("steps", "batch")] if not wrong else []
    if not all(type(n) is int and n > 0 for n in numbers):
        wrong = ["settings"]
    counts = [state[k] for k, kind in wanted.items() if kind is int and k not in wrong]
    if wrong or min(counts) < 0 or max(counts) > 10**12 or state["begun_as"] == 0:
        what = f"its {wrong[0]} is missing or wrong" if wrong else "a number in it is impossible"
        raise UserError(
            f"{path} was not written by this version of the code ({what}); start a new run"
        )
    if state["folder"] != folder.as_posix():
        belongs = f"belongs to {state['folder'][:100]}/, not to {folder.as_posix()}/"
        raise UserError(f"{path} {belongs}")
    if state["settings"].get("name") != path.stem:
        raise UserError(f"{path} is of a run of another name; give the file its name back")
    # Before a network of that width is built.
    weights = [w for w in state.get("model", {}).values() if isinstance(w, torch.Tensor)]
    if weights and state["settings"].get("channels") not in {n for w in weights for n in w.shape}:
        raise UserError(f"{path}: its networks are not of its settings; start a new run")
    return state


def check_same_data(state: dict | None, data_id: str) -> None:
    """Raise UserError when a resumed run was begun on other data."""
    if state and state["ids"].get("data") != data_id:
        raise UserError(
            f"--resume: the images are not those that the run {state['settings']['name']} was "
            "begun with; start a new run"
        )


def in_batches_of(state: dict, order: ShuffledOrder) -> dict:
    """A state in steps of that order's batch: as many images were seen, and as many will be."""
    was = min(state["settings"].get("batch", order.batch), order.n)
    if order.batch == was:
        return state
    counts = "step", "begun_as", "fall_start"
    settings = {**state["settings"], "steps": state["settings"]["steps"] * was // order.batch}
    return {**state, **{k: state[k] * was // order.batch for k in counts}, "settings": settings}
