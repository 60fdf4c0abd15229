"""Laws of the drawn faces: a pure function of (index, size), undistorted, varied, smooth."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.synthetic import draw_face

ROOT = Path(__file__).resolve().parent.parent
# Rows and columns of a 64 x 64 face that lie on the feature for nearly every head position.
EYES, CHEEKS, HAIR = np.s_[28:38, 20:44], np.s_[40:44, 22:42], np.s_[8:18, 16:48]


@pytest.fixture(scope="module")
def faces():
    """(400, 64, 64, 3) float64 in 0 .. 255."""
    return np.stack([draw_face(index, (64, 64)) for index in range(400)]).astype(float)


def test_same_index_same_bytes_whatever_was_drawn_before():
    first = draw_face(7, (64, 64))
    draw_face(8, (32, 48))
    np.random.default_rng(0).uniform(size=10)
    assert np.array_equal(draw_face(7, (64, 64)), first)


def test_same_bytes_in_another_process():
    code = (
        "import hashlib; from data.synthetic import draw_face;"
        "print(hashlib.sha256(draw_face(123, (64, 48)).tobytes()).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    here = hashlib.sha256(draw_face(123, (64, 48)).tobytes()).hexdigest()
    assert there.stdout.strip() == here


def test_no_two_faces_are_alike(faces):
    small = faces[:200].reshape(200, -1)
    square = (small**2).sum(1)
    distance = (square[:, None] + square - 2 * small @ small.T) / small.shape[1]
    np.fill_diagonal(distance, np.inf)
    assert np.sqrt(distance.min()) > 10


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (48, 80), (80, 48), (208, 176)])
def test_shape_and_dtype(size):
    face = draw_face(3, size)
    assert face.shape == (*size, 3)
    assert face.dtype == np.uint8
    assert face.flags.writeable  # else torch.from_numpy warns


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (64, 160)])
def test_a_longer_side_adds_margin_and_moves_nothing(size):
    top, left = (size[0] - 64) // 2, (size[1] - 64) // 2
    for index in range(20):
        square = draw_face(index, (64, 64)).astype(int)
        centre = draw_face(index, size)[top : top + 64, left : left + 64].astype(int)
        assert np.array_equal(centre[EYES], square[EYES])
        assert np.abs(centre - square).mean() < 8  # the background's gradient is longer


def test_twice_the_size_is_the_same_person():
    for index in range(20):
        large = draw_face(index, (128, 128)).astype(float)
        reduced = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(reduced - draw_face(index, (64, 64))).mean() < 3


def test_every_face_has_contrast(faces):
    assert faces.std(axis=(1, 2)).max(axis=1).min() > 20


def test_people_differ_everywhere(faces):
    spread = faces.std(axis=0).mean(axis=2)
    assert spread.min() > 15
    assert spread[EYES].mean() > 35
    assert spread[HAIR].mean() > 40


def test_eyes_have_white_and_black_that_skin_has_not(faces):
    def has_white_and_black(region):
        pixels = faces[(slice(None), *region)].reshape(len(faces), -1, 3)
        low, high = pixels.min(axis=2), pixels.max(axis=2)
        white = (low > 120) & (high - low < 0.2 * high)
        return ((white.sum(axis=1) >= 4) & ((high < 80).sum(axis=1) >= 4)).mean()

    assert has_white_and_black(EYES) > 0.98
    assert has_white_and_black(CHEEKS) < 0.05


def test_skin_runs_from_dark_to_light(faces):
    brightness = np.median(faces[(slice(None), *CHEEKS)].mean(axis=3), axis=(1, 2))
    assert np.percentile(brightness, 5) < 80
    assert np.percentile(brightness, 95) > 170


def test_no_side_is_preferred(faces):
    """Light, gaze, parting and tilt come from both sides: a face is lopsided, their mean is not."""
    mirrored = faces[:, :, ::-1]
    assert np.abs(faces - mirrored).mean() > 15
    assert np.abs(faces.mean(axis=0) - mirrored.mean(axis=0)).mean() < 3


def test_background_is_smooth():
    for index in range(20):
        margin = draw_face(index, (64, 128))[:, :24].astype(int)
        assert np.abs(np.diff(margin, axis=0)).max() <= 4
        assert np.abs(np.diff(margin, axis=1)).max() <= 4
        assert np.ptp(margin, axis=(0, 1)).max() > 3  # a gradient, not a flat colour
