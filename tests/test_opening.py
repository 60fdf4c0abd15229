"""Only regular files are opened, and refusals are told apart from absence."""

import os

import pytest

from data import opening
from data.opening import is_there, open_regular


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

    monkeypatch.setattr(opening.os, "stat", refuse)
    with pytest.raises(ValueError, match="closed cannot be read .Permission denied.; allow it"):
        is_there(tmp_path / "closed")
