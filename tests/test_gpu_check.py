"""The check of a GPU: every part is told, timed, cut at its end, and fails alone."""

import json
import time

import pytest

from benchmarks import check, gpu_check
from benchmarks.check import Check, SkippedError


def finds(check):
    check.add("speed", 3.0, "images/s", ">= 4")
    check.add("speed", 5.0, "images/s", ">= 4")  # the newest of a name
    (check.work / "a.png").write_bytes(b"a picture")
    gpu_check.keep(check, "task", check.work / "a.png")


def fails(check):
    check.run("-c", "print('its last words'); raise SystemExit(3)")


def skips(check):
    raise SkippedError("there are no data")


def hangs(check):
    """It leaves what it has printed, and no process."""
    ended, output = check.run("-c", "import time; print('begun'); time.sleep(60)")
    check.result.notes.append(f"{ended} {output.strip()}")


def test_a_part_that_fails_is_reported_and_stops_no_other(tmp_path, capsys):
    parts = {"fails": (1, fails), "skips": (1, skips), "hangs": (1, hangs), "finds": (1, finds)}
    flags = ["--device", "cpu", "--minutes", "0.45", "--out", str(tmp_path / "out")]
    began = time.monotonic()
    assert gpu_check.main(flags, parts) == 1
    assert time.monotonic() - began < 20
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {part["name"]: part["status"] for part in found["parts"]} == {
        "fails": "failed", "skips": "skipped", "hangs": "cut", "finds": "passed",
    }  # fmt: skip
    failed, skipped, cut, passed = found["parts"]
    assert failed["tail"] == ["its last words"] and failed["notes"] == ["FailedError: status 3"]
    assert (skipped["notes"], cut["notes"]) == (["there are no data"], ["False begun"])
    assert [(f["value"], f["met"]) for f in passed["figures"]] == [(5.0, True)]
    assert (tmp_path / "out" / passed["pictures"][0]).read_bytes() == b"a picture"
    assert {"device", "torch", "Python"} <= set(found["machine"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| fails | **failed** |" in text and "its last words" in text
    assert "| speed | 5 images/s | >= 4 | yes |" in text and "(pictures/task-a.png)" in text
    assert "left: skips skipped; there are no data" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--device", "cuda:99", "--out", str(tmp_path / "out")])
    assert end.value.code == 2 and not (tmp_path / "out").exists()
    assert "--device cuda:99 cannot be used here" in capsys.readouterr().err


def test_parts_have_shares_of_the_time_that_is_left(tmp_path, monkeypatch):
    """What one leaves goes to those after it; their weights are those of a whole check."""
    given = []

    def notes_time(check):
        given.append(check.left)

    one = Check("cpu", True, None, tmp_path, tmp_path)
    monkeypatch.setattr(check, "machine", lambda device: {})
    check.run_parts(
        one, {"a": (1, notes_time), "b": (2, notes_time), "c": (1, notes_time)}, 40 + check.RESERVE
    )
    assert given == pytest.approx([10, 80 / 3, 40], abs=1)
    weights = [weight for weight, _ in gpu_check.PARTS.values()]
    assert sum(weights) + check.RESERVE <= 60 * gpu_check.MINUTES


def test_celebas_first_pictures_are_its_own_data_root(tmp_path, monkeypatch):
    folder = tmp_path / "celeba" / "img_align_celeba"
    gpu_check.draw_files(tmp_path / "celeba", 5)
    monkeypatch.setattr(gpu_check, "CELEBA_IMAGES", 3)
    one = Check("cpu", True, tmp_path, tmp_path, tmp_path / "work")
    assert gpu_check.has_celeba(one)
    made = gpu_check.some_of_celeba(one) / "celeba" / "img_align_celeba"
    names = sorted(path.name for path in made.iterdir())
    assert len(names) == 3
    assert all((made / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_a_script_leaves_its_files_in_the_temporary_folder(tmp_path, monkeypatch):
    """And says how much memory it took; here one that only answers for help."""
    (tmp_path / "work").mkdir()
    one = Check("cpu", True, None, tmp_path, tmp_path / "work", time.monotonic() + 60)
    script = tmp_path / "script.py"
    script.write_text("open('made', 'w').write('x'); import common.errors")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    one.script("script.py")
    assert (tmp_path / "work" / "made").is_file() and one.result.figures[0]["value"] > 0
