"""Fixtures of several files of tests."""

from pathlib import Path

import pytest

from data import download
from training.run import Run


@pytest.fixture
def no_figures(monkeypatch):
    """Runs whose figures are not looked at draw none: they take longer than some training steps."""
    monkeypatch.setattr(Run, "figures_due", lambda self, done: False)


@pytest.fixture
def downloads(monkeypatch):
    """Downloads do nothing but are written down here."""
    tried = []

    def note(name, root):
        tried.append((name, Path(root)))

    monkeypatch.setattr(download, "try_torchvision", note)
    return tried
