"""Files of JSON lines: the metrics of runs, and the results of evaluations."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_atomic


def read_metrics(path: Path, name: str) -> list[dict]:
    """The records of one run, in order; [] where there is no file."""
    return [record for record in read_records(path) if record.get("run") == name]


def read_records(path: Path) -> list[dict]:
    """All readable records of a file of JSON lines, in order; [] where there is no file."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [record for record in map(_parse, lines) if record]


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a file of JSON lines. A number that is not finite (fp16: the gradient's norm in
    a step that is skipped) becomes null: JSON has no other word for it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(_finite(record), allow_nan=False) + "\n")


def _finite(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def keep_until(path: Path, name: str, step: int) -> None:
    """Drop a run's records after this step: an interrupted run goes on from its last state."""
    path = Path(path)
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [
        line
        for line in lines
        if (record := _parse(line)) and (record.get("run") != name or record.get("step", 0) <= step)
    ]
    if len(kept) < len(lines):
        write_atomic(path, lambda file: file.write_text("".join(kept), encoding="utf-8"))


def _parse(line: str) -> dict:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}  # cut off by a power failure
