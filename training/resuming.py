"""Which run is begun, or gone on with from its last state."""

from pathlib import Path

from common.errors import UserError
from common.launch import is_first
from training import checkpoint, distributed

FIELDS = {
    "folder": str, "step": int, "begun_as": int, "fall_start": int, "settings": dict, "ids": dict,
    "configs": dict, "facts": dict,
}  # fmt: skip


def find_state(resume: str | None, name: str | None, task: str) -> dict | None:
    """The state of the run to go on with; None for a new run, which `resume` None begins.

    resume: "newest", a run's name or its .state file. name: of the new run. task: what is trained;
    its runs are in checkpoints/task. All processes read the file that the first one finds. Raises
    UserError when there is no such run, or when a new one would overwrite an old one's files.
    """
    folder = Path("checkpoints", task)
    if resume is None:
        taken = [*folder.glob(f"{name}_epoch*"), *folder.glob(f"{name}.state")]
        if taken and is_first():
            raise UserError(f"--name {name} is taken by {taken[0]}; choose another name")
        return None
    path = distributed.firsts(_find(folder, resume) if is_first() else folder)
    return load_checked(path, folder)


def _find(folder: Path, resume: str) -> Path:
    """The .state file of that run in folder."""
    states = checkpoint.checkpoints_in(folder, ".state")
    if not states:
        raise UserError(f"--resume: no .state file in {folder}")
    if resume == "newest":
        return states[0]
    path = Path(resume) if resume.endswith(".state") else folder / f"{resume}.state"
    if path.absolute() not in [state.absolute() for state in states]:
        there = ", ".join(state.stem for state in states[:5])
        raise UserError(f"--resume: no run {resume} in {folder}; there are {there}")
    return path


def load_checked(path: Path, folder: Path) -> dict:
    """The state of a run in folder, and its "path". Raises UserError where it is damaged, another's
    or of another version. Its settings are checked by their flags, networks and optimizers when
    they take their tensors."""
    state = checkpoint.load_state(path)
    if any(type(state.get(name)) is not kind for name, kind in FIELDS.items()):
        raise UserError(f"{path} was not written by this version of the code; start a new run")
    if (state["folder"], state["settings"].get("name")) != (folder.as_posix(), path.stem):
        raise UserError(f"{path} is not of the run {path.stem} in {folder}; put it back")
    return {**state, "path": path}


def check_same_data(state: dict | None, data_id: str) -> None:
    """Raise UserError when a resumed run was begun on other data."""
    if state and state["ids"].get("data") != data_id:
        raise UserError(
            f"--resume: the images are not those that the run {state['settings']['name']} was "
            "begun with; start a new run"
        )
