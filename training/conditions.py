"""What can be asked of the pictures that a run learns to make, and that it stays the same."""

from collections.abc import Mapping

from common.errors import UserError
from data.labels import ATTRIBUTES, CLASSES, Labels
from models.unet import UNet
from training.progress import told
from training.resuming import check_same_data


def use_labels(
    labels: Labels | None, ids: Mapping[str, str], state: dict | None, model: UNet | None = None
) -> tuple[dict[str, str], dict]:
    """(ids of a run, with that of its labels; what a checkpoint's facts say of them), {} without.
    Says what can be asked for. Raises UserError where a resumed run has learnt other images or
    labels, or the network to begin with knows other ones. (One that knows none may learn them.)"""
    check_same_data(state, ids["data"])
    mine = {"labels": labels.digest()} if labels else {}
    if state and state["ids"].get("labels") != mine.get("labels"):
        raise UserError(
            "--resume: the labels are not those that the run "
            f"{state['settings']['name']} was begun with; start a new run"
        )
    known = {k: getattr(model.config, k) for k in (CLASSES, ATTRIBUTES)} if model else {}
    has = ", ".join(f"{n} {kind}" for kind, n in known.items() if n) or "no labels"
    wanted = f"{len(labels.names)} {labels.kind}" if labels else "no labels"
    if model and has not in (wanted, "no labels" if not state else wanted):
        raise UserError(f"--init: its network knows {has}, but --condition gives {wanted}")
    if labels is None:
        return {**ids}, {}
    some = ", ".join(labels.names[:10]) + ", .." * (len(labels.names) > 10)
    print(told("conditions", f"{len(labels.names)} {labels.kind}: {some}"), flush=True)
    fact = {"kind": labels.kind, "names": list(labels.names), "source": labels.source}
    return {**ids, **mine}, {"condition": fact}
