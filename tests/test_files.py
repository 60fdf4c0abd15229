"""Files are finished or absent; folders that cannot be used are named."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz import NO_JSON
from helpers import ROOT, tree

from common.errors import UnreadableError, UserError
from common.files import (
    is_there,
    lock,
    make_folder,
    open_regular,
    parse_json,
    reading,
    remove_leftovers,
    write_atomic,
)


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


def age(path, hours):
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))


def test_leftovers_are_removed_after_a_day(tmp_path):
    """The first two are those of earlier versions."""
    names = {"a.state.123.tmp": 25, "b.state.124.tmp": 23, "c.png.7-01234567.tmp": 25}
    for name, hours in {**names, "a.state": 25, "c.tmp": 25, ".tmp": 25}.items():
        (tmp_path / name).write_text("")
        age(tmp_path / name, hours)
    remove_leftovers(tmp_path)
    assert set(map(str, tree(tmp_path))) == {"b.state.124.tmp", "a.state", "c.tmp", ".tmp"}


def test_writers_of_one_file_never_meet(tmp_path, monkeypatch):
    """In containers that share a disk processes have the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / ("x" * 255)  # the longest name there is

    def write(temporary):
        temporary.write_text("one")
        write_atomic(path, lambda other: other.write_text("two"))
        assert temporary.read_text() == "one" and path.read_text() == "two"

    write_atomic(path, write)
    assert tree(tmp_path) == {Path(path.name): b"one"}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_rights_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "a", lambda path: path.write_text("x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_a_full_disk_names_the_file(tmp_path):
    def write(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'a'}'"):
        write_atomic(tmp_path / "a", write)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/a'"):
        write_atomic(tmp_path / "file" / "a", write)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ELOOP, errno.EMFILE])
def test_what_cannot_be_read_is_neither_absent_nor_damaged(tmp_path, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "open", refuse)
    path = tmp_path / "a"
    told = f"{path} (may not|cannot) be read"
    with pytest.raises(UnreadableError, match=told), reading(path):
        open_regular(path)


@pytest.mark.parametrize("text", NO_JSON)
def test_json_is_refused_in_one_way(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_is_read():
    tree = {"a": [1, 2.5, -1e-300, None, True, "süß"], "b": {"a": {}}}
    assert parse_json(json.dumps(tree)) == parse_json(json.dumps(tree).encode()) == tree


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


def test_regular_files_only(tmp_path):
    """A pipe without a writer and a terminal would wait for ever."""
    (tmp_path / "file").write_bytes(b"abc")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"abc"
    for name in ("pipe", "device", "."):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(tmp_path / name)


def test_what_is_opened_is_looked_at_not_its_name(tmp_path, monkeypatch):
    """Else it could be replaced in between."""
    (tmp_path / "a").write_bytes(b"abc")
    really = os.open

    def replaced(path, flags):
        os.unlink(path)
        os.mkfifo(path)
        return really(path, flags)

    monkeypatch.setattr(os, "open", replaced)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "a")


def test_refused_is_not_absent(tmp_path, monkeypatch):
    assert is_there(tmp_path)
    assert not is_there(tmp_path / "no")
    (tmp_path / "file").write_bytes(b"")
    assert not is_there(tmp_path / "file" / "in it")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(UnreadableError, match="closed may not be read"):
        is_there(tmp_path / "closed")


HOLD = """
import os, time
from common.files import lock
held = lock("l", "it is held")
pids = os.getpid(), os.fork() or os.getpid()
print(pids[0], pids[1], flush=True) if pids[0] != pids[1] else None
time.sleep(60)
"""


def test_a_lock_is_given_up_by_a_holder_that_is_killed(tmp_path):
    """Also while a process that it has forked lives on."""
    lock(tmp_path / "l", "").close()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE) as holder:
        _, child = map(int, holder.stdout.readline().split())
        with pytest.raises(UserError, match="it is held"):
            lock(tmp_path / "l", "it is held")
        holder.kill()
        holder.wait()
        lock(tmp_path / "l", "it is held").close()
        os.kill(child, signal.SIGKILL)
