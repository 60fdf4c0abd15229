"""Fixtures of several files of tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from data import download
from training.run import Run

# The same examples at each run, however slow the machine is.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
settings.register_profile("same", deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("same")


@pytest.fixture
def device():
    """Where tests run for which it matters: the CPU, or TEST_DEVICE."""
    return os.environ.get("TEST_DEVICE", "cpu")


def pytest_collection_modifyitems(items):
    """pytest -m device chooses the tests that have a device."""
    for item in items:
        if "device" in item.fixturenames:
            item.add_marker("device")


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
