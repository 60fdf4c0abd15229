"""Files are finished or absent; folders that cannot be used are named."""

import os
import time
from pathlib import Path

import pytest
from helpers import tree

from common.files import make_folder, remove_leftovers, write_atomic


def test_write_atomic_replaces_at_the_end(tmp_path):
    path, seen = tmp_path / "new" / "folder" / "file.txt", []

    def write(text):
        def writer(temporary):
            temporary.write_text(text)
            seen.append((temporary.parent, path.read_text() if path.exists() else None))

        return writer

    write_atomic(path, write("old"))
    write_atomic(str(path), write("new"))
    assert seen == [(path.parent, None), (path.parent, "old")]
    assert tree(path.parent) == {Path("file.txt"): b"new"}


def test_a_folder_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")  # where it is, it stays
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file.b cannot be made \("):
        make_folder(tmp_path / "file" / "b")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(ValueError, match="a.b cannot be written to"):
        make_folder(tmp_path / "a" / "b")


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    for name, hours in {
        "a.state.123.tmp": 25,
        "b.state.124.tmp": 23,
        "a.state": 25,
        "c.tmp": 25,
    }.items():
        (tmp_path / name).write_text("")
        then = time.time() - 3600 * hours
        os.utime(tmp_path / name, (then, then))
    remove_leftovers(tmp_path)
    assert set(map(str, tree(tmp_path))) == {"b.state.124.tmp", "a.state", "c.tmp"}


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("old", ["old", None])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failing_writer_changes_nothing(tmp_path, begun, old, error):
    path = tmp_path / "file.txt"
    if old:
        path.write_text(old)
    before = tree(tmp_path)

    def writer(temporary):
        if begun:
            temporary.write_text("half of the n")
        raise error

    with pytest.raises(error):
        write_atomic(path, writer)
    assert tree(tmp_path) == before
