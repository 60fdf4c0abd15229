"""Files of JSON lines: the metrics of runs, and the results of evaluations."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_atomic


def read_metrics(path: str | Path, name: str) -> list[dict]:
    """The records of one run, in order; [] where there is no file. Each has a "step", and else
    numbers, or lists of them (band_loss), of which some may be None."""
    records = read_records(path)
    return [r for r in records if r.get("run") == name and isinstance(r.get("step"), int)]


def read_records(path: str | Path) -> list[dict]:
    """All readable records of a file of JSON lines, in order; [] where there is no file."""
    return [record for record in map(_parse, _lines(Path(path))) if record]


def append_record(path: str | Path, record: Mapping[str, Any]) -> None:
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


def keep_until(path: str | Path, name: str, step: int) -> None:
    """Drop a run's records after this step, and lines that are no records: an interrupted run goes
    on from its last state."""
    lines = _lines(Path(path))
    kept = []
    for line in lines:
        record = _parse(line)
        later = record.get("run") == name and record.get("step", step) > step
        if record and not later:
            kept.append(line)
    if len(kept) < len(lines):
        write_atomic(path, lambda file: file.write_bytes(b"".join(kept)))


def _lines(path: Path) -> list[bytes]:
    """With their ends; each ends with one, so that a torn one is not gone on with."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [line + b"\n" for line in lines]


def _parse(line: bytes) -> dict:
    """{} for what is no record, such as a line torn by a power failure."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
