"""Files of JSON lines: what is written can be read, torn lines are skipped, later ones dropped."""

import json
import math

import pytest

from training.records import append_record, keep_until, read_metrics, read_records


def test_metrics_are_json_whatever_the_numbers(tmp_path):
    """In fp16 a step that is skipped has a gradient of infinite norm."""
    path = tmp_path / "fig" / "metrics.jsonl"
    append_record(
        path, {"run": "a", "step": 1, "norm": math.inf, "loss": 0.5, "band": [1.0, math.nan]}
    )
    append_record(path, {"note": "by hand"})
    append_record(path, {"run": "a", "step": 2, "norm": 2.0})
    keep_until(path, "a", 1)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    first, second = (json.loads(x, parse_constant=refuse) for x in path.read_text().splitlines())
    assert first == {"run": "a", "step": 1, "norm": None, "loss": 0.5, "band": [1.0, None]}
    assert second == {"note": "by hand"}


def test_resuming_drops_the_records_after_the_state(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"run": run, "step": step} for step in (1, 2, 3) for run in ("a", "b")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"run": "a", "st')
    keep_until(path, "a", 1)
    assert [r["step"] for r in read_metrics(path, "a")] == [1]
    assert [r["step"] for r in read_metrics(path, "b")] == [1, 2, 3]


def test_records_come_back_in_order_and_torn_ones_do_not(tmp_path):
    path = tmp_path / "new" / "records.jsonl"
    assert read_records(path) == []  # no file
    records = [{"run": "a", "x": [1, None, {"y": 0.1}]}, {"run": "b"}, {"run": "a", "step": 2}]
    for record in records:
        append_record(path, record)
    path.write_text(path.read_text() + '{"run": "a", "st')
    assert read_records(path) == records and read_metrics(path, "a") == records[2:]


def test_records_that_all_stay_are_not_written_again(tmp_path):
    path = tmp_path / "records.jsonl"
    keep_until(path, "a", 1)  # no file
    append_record(path, {"run": "a", "step": 1})
    before = path.stat()
    keep_until(path, "a", 1)
    keep_until(path, "b", 0)
    assert path.stat().st_ino == before.st_ino and path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("line", ["", "{", "[1]", "7", "null", '"x"', "\x00", "[" * 10**5])
def test_a_bad_line_stops_no_run(tmp_path, line):
    """The good lines around it stay."""
    path, good = tmp_path / "m.jsonl", '{"run": "a", "step": 1}\n'
    path.write_text(good + line + "\n" + good)
    assert len(read_metrics(path, "a")) == 2
    keep_until(path, "a", 1)
    assert path.read_text() == 2 * good
