"""What is drawn: grids to their edges, the axes of the trade."""

import matplotlib.axes
import numpy as np
import pytest
import torch
from PIL import Image

from data.pixels import to_uint8
from training import figures


@pytest.mark.parametrize(("columns", "size"), [(3, 8), (5, 64)])
def test_pictures_in_a_grid_end_where_they_end(tmp_path, columns, size):
    """Enlarged, a picture of one colour stays so to its edge, and the lines between are white."""
    x = torch.linspace(-0.9, 0.9, 15).view(5, 3, 1, 1).expand(5, 3, size, size)
    figures.save_grid(tmp_path / "grid.png", x, columns)
    image = np.asarray(Image.open(tmp_path / "grid.png"))
    factor = image.shape[1] // (columns * (size + 2) + 2)
    assert image.shape == (factor * (-(-5 // columns) * (size + 2) + 2),
                           factor * (columns * (size + 2) + 2), 3) and factor > 1  # fmt: skip
    step, line, side = (factor * n for n in (size + 2, 2, size))
    for i in range(5):
        top, left = (line + step * k for k in divmod(i, columns))
        picture = image[top : top + side, left : left + side]
        assert (picture == to_uint8(x)[i, :, 0, 0].numpy()).all()
        assert (image[top - line : top] == 255).all()
        assert (image[:, left - line : left] == 255).all()


def test_the_figure_of_the_trade_has_recall_to_the_right(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        matplotlib.axes.Axes, "plot", lambda self, x, y, *_, **k: drawn.append((x, y))
    )
    monkeypatch.setattr(matplotlib.axes.Axes, "legend", lambda self, **k: None)
    figures.trade(tmp_path / "trade.png", {"space": [("a", 0.25, 0.75, 3.0)]})
    assert drawn == [(0.75, 0.25)]
