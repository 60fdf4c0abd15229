"""Files of JSON lines: what is written can be read, torn lines are skipped, later ones dropped."""

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


GOOD = {"run": "a", "step": 1, "loss": 0.5, "band_loss": [0.1, None]}
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    st.binary(max_size=40)
    | JUNK.map(lambda value: json.dumps(value).encode())
    | st.tuples(st.sampled_from(sorted(GOOD)), JUNK).map(
        lambda item: json.dumps({**GOOD, item[0]: item[1]}).encode()
    )
)
def test_a_bad_line_stops_no_run(tmp_path_factory, line):
    """What is read can be drawn, and the good lines around a bad one stay."""
    path = tmp_path_factory.getbasetemp() / "bad.jsonl"
    good = json.dumps(GOOD).encode() + b"\n"
    path.write_bytes(good + line + b"\n" + good)
    keep_until(path, "a", 1)
    records = read_metrics(path, "a")
    assert records[0] == records[-1] == GOOD and len(read_records(path)) >= 2
    for record in records:
        values = [record["step"], record.get("loss"), *(record.get("band_loss") or [0])]
        assert all(value is None or math.isfinite(value) for value in values)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has none")
def test_a_fifo_is_no_file_of_records(tmp_path):
    """Reading or writing it would wait for ever."""
    os.mkfifo(tmp_path / "m.jsonl")
    assert read_records(tmp_path / "m.jsonl") == []
    with pytest.raises(OSError, match=r"m\.jsonl is no regular file"):
        append_record(tmp_path / "m.jsonl", GOOD)
