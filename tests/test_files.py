"""Files are finished or absent; folders that cannot be used are named."""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz import NO_JSON
from helpers import ROOT, tree

from common import files
from common.errors import UnreadableError
from common.files import (
    is_there,
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


def test_what_earlier_versions_left_is_removed_after_a_day(tmp_path):
    """They knew no locks; .tmpXXXXXX are safetensors' own."""
    names = {"a.state.123.tmp": 25, "b.state.124.tmp": 23, ".tmpa1B2c3": 25, ".tmpa1B2c4": 23}
    for name, hours in {**names, "a.state": 25, "c.tmp": 25, ".tmp": 25}.items():
        (tmp_path / name).write_text("")
        age(tmp_path / name, hours)
    remove_leftovers(tmp_path)
    left = {"b.state.124.tmp", ".tmpa1B2c4", "a.state", "c.tmp", ".tmp"}
    assert set(map(str, tree(tmp_path))) == left


WRITER = """
import sys, time
from common.files import write_atomic
def write(path):
    path.write_text("half")
    print(path.name, flush=True)
    sys.stdin.read()
write_atomic("file.txt", write)
"""


def start_writer(folder):
    """A process in the middle of a write, and the name of its temporary file."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WRITER]
    process = subprocess.Popen(command, cwd=folder, env=env, stdin=pipe, stdout=pipe, text=True)
    return process, process.stdout.readline().strip()


def test_leftovers_of_the_dead_are_removed_at_once_and_nothing_of_the_living(tmp_path):
    living, temporary = start_writer(tmp_path)
    dead, left = start_writer(tmp_path)
    dead.kill()
    dead.communicate()
    age(tmp_path / temporary, 1000)  # however long it takes
    assert set(map(str, tree(tmp_path))) == {temporary, left}
    remove_leftovers(tmp_path)
    assert set(map(str, tree(tmp_path))) == {temporary}
    living.communicate()
    assert tree(tmp_path) == {Path("file.txt"): b"half"} and living.returncode == 0


def test_a_writer_that_is_taken_for_dead_before_it_locks_begins_anew(tmp_path, monkeypatch):
    lock, removed = files.fcntl.flock, []

    def late(file, how):
        if not removed:
            removed.append(file.name)
            os.unlink(file.name)
        lock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", late)

    def write(path):
        path.write_text("new")
        remove_leftovers(tmp_path)  # of which this is none

    write_atomic(tmp_path / "file.txt", write)
    assert removed and tree(tmp_path) == {Path("file.txt"): b"new"}


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
