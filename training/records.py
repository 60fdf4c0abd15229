"""Files of JSON lines: the metrics of runs, and the results of evaluations."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_atomic

LARGEST = 2**27  # bytes


def read_metrics(path: Path, name: str) -> list[dict]:
    """The records of one run, in order; [] where there is no file.

    Lines that are no record of one are left out: it has a "step" and "run", and else numbers, or
    lists of them (band_loss), of which some may be None.
    """
    return [r for r in read_records(path) if r.get("run") == name and _is_record(r)]


def read_records(path: Path) -> list[dict]:
    """All readable records of a file of JSON lines, in order; [] where there is no file."""
    return [record for record in map(_parse, _lines(Path(path))) if record]


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a file of JSON lines. A number that is not finite (fp16: the gradient's norm in
    a step that is skipped) becomes null: JSON has no other word for it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file; move it away")
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(_finite(record), allow_nan=False) + "\n")


def _finite(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def keep_until(path: Path, name: str, step: int) -> None:
    """Drop a run's records after this step, and lines that are no records: an interrupted run goes
    on from its last state."""
    lines = _lines(Path(path))
    records = map(_parse, lines)
    kept = [
        line for line, record in zip(lines, records, strict=True)
        if record and not _is_later(record, name, step)
    ]  # fmt: skip
    if len(kept) < len(lines):
        write_atomic(path, lambda file: file.write_bytes(b"".join(kept)))


def _is_later(record: dict, name: str, step: int) -> bool:
    at = record.get("step")
    return record.get("run") == name and isinstance(at, int) and at > step


def _is_record(record: dict) -> bool:
    """Whether it can be drawn."""
    bands = record.get("band_loss") or []
    numbers = [value for key, value in record.items() if key not in ("run", "band_loss")]
    return (
        isinstance(record.get("step"), int)
        and isinstance(bands, list)
        and all(value is None or _is_number(value) for value in [*numbers, *bands])
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _lines(path: Path) -> list[bytes]:
    """With their ends; each ends with one, so that a torn one is not gone on with."""
    if path.is_file() and path.stat().st_size > LARGEST:
        raise OSError(f"{path} is too large for a file of records; move it away")
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [line if line.endswith(b"\n") else line + b"\n" for line in lines]


def _parse(line: bytes) -> dict:
    """{} for what is no record: torn by a power failure, damaged, or of another kind."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
