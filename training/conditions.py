"""What can be asked of the pictures that a run learns to make, and that it stays the same."""

from collections.abc import Mapping

from common.errors import UserError
from data.labels import Labels
from training.progress import told
from training.resuming import check_same_data


def use_labels(
    labels: Labels | None, ids: Mapping[str, str], state: dict | None
) -> tuple[dict[str, str], dict]:
    """(ids of a run, with that of its labels; what a checkpoint's facts say of them), {} without.
    Says what can be asked for. Raises UserError where a resumed run has learnt other images or
    labels."""
    check_same_data(state, ids["data"])
    mine = {"labels": labels.digest()} if labels else {}
    if state and state["ids"].get("labels") != mine.get("labels"):
        raise UserError(
            "--resume: the labels are not those that the run "
            f"{state['settings']['name']} was begun with; start a new run"
        )
    if labels is None:
        return {**ids}, {}
    some = ", ".join(labels.names[:10]) + ", .." * (len(labels.names) > 10)
    print(told("conditions", f"{len(labels.names)} {labels.kind}: {some}"), flush=True)
    fact = {"kind": labels.kind, "names": list(labels.names), "source": labels.source}
    return {**ids, **mine}, {"condition": fact}
