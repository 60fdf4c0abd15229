"""A run's page: index.html beside its figures, for whoever looks in, on a phone too.

It asks the network for nothing. Curves are drawn in it, and pictures lie beside it.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

from common.files import write_atomic
from data.decoding import open_picture
from training import figures
from training.progress import dispensable, duration
from training.records import read_metrics

EVERY = 60  # seconds between pages while nothing is drawn; after which one loads itself anew
MOST_EARLIER, EARLIER_PIXELS = 10, 480  # small copies of earlier figures, and their greatest side
MOST_POINTS = 400  # of a curve
EARLIER = re.compile(r"(\w+)_step(\d{1,12})\.jpg")
PANELS = {  # what a denoiser learns, what an autoencoder learns
    "Squared error of eps_hat": ("loss", "valid_raw", "valid_ema"),
    "l2 loss": ("loss_rec",),
    "Perceptual loss": ("loss_perceptual", "valid_perceptual"),
    "Validation PSNR, dB": ("psnr_raw", "psnr_ema"),
}
STYLE = """
:root { color-scheme: light dark; --dim: #667; --line: #ccd; --c0: #06c; --c1: #d60; --c2: #283; }
@media (prefers-color-scheme: dark) {
  :root { --dim: #99a; --line: #445; --c0: #6af; --c1: #fa5; --c2: #7c8; }
}
body { font: 17px/1.5 system-ui, sans-serif; max-width: 60rem; margin: auto; padding: 1rem;
       overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; line-height: 1.2; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 0; }
p { margin: .3rem 0; } small, figcaption { font-size: .9rem; color: var(--dim); }
progress { width: 100%; height: 1.2rem; } figure { margin: .8rem 0 0; }
img { max-width: 100%; height: auto; border-radius: 4px; vertical-align: top; }
svg { width: 100%; height: 11rem; overflow: visible; border: solid var(--line);
      border-width: 1px 0; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round;
           vector-effect: non-scaling-stroke; }
.c0 { stroke: var(--c0); color: var(--c0); } .c1 { stroke: var(--c1); color: var(--c1); }
.c2 { stroke: var(--c2); color: var(--c2); }
.ends { display: flex; justify-content: space-between; }
.strip { display: flex; gap: .6rem; overflow-x: auto; } .strip figure { flex: 0 0 15rem; }
td { border-top: 1px solid var(--line); padding: .2rem .8rem .2rem 0; vertical-align: top; }
table { border-collapse: collapse; margin-top: .5rem; } td:first-child { white-space: nowrap; }
"""


class Page:
    """The page in a run's folder of figures; written often, it costs milliseconds, and an error
    stops no run.

    batch: images in each of the run's steps. settings: what was asked for.
    """

    def __init__(self, folder: Path, steps: int, batch: int, settings: Mapping[str, Any]) -> None:
        self.folder, self.steps, self.batch, self.settings = folder, steps, batch, settings
        self._written = -math.inf

    def refresh(self, done: int) -> None:
        """Write it where the last one is old."""
        if time.monotonic() - self._written > EVERY:
            self.write(done)

    def write(self, done: int, goes_on: bool = True) -> None:
        """Write it. goes_on: whether the run does, so that the page loads itself anew."""
        self._written = time.monotonic()
        with dispensable("page"):
            text = self._html(done, goes_on).encode("utf-8", "xmlcharrefreplace")
            write_atomic(self.folder / "index.html", lambda file: file.write_bytes(text))

    def _html(self, done: int, goes_on: bool) -> str:
        records = read_metrics(self.folder / "metrics.jsonl", self.folder.name)
        title = escape(f"{self.folder.parent.name}: {self.folder.name}")
        curves = [_curves(panel, keys, records) for panel, keys in PANELS.items()]
        rows = [f"<tr><td>{_words(name)}<td>{escape(_said(value))}"
                for name, value in sorted(self.settings.items()) if value is not None]  # fmt: skip
        reload = f'<meta http-equiv="refresh" content="{EVERY}">' if goes_on else ""
        return f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>{reload}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="script-src 'none'; base-uri 'none'">
<link rel="icon" href="data:,"><style>{STYLE}</style>
<h1>{title}</h1>
{_progress(done, self.steps, self.batch, goes_on, records)}
{"".join(curves) and "<h2>Curves</h2>"}{"".join(curves)}
{_pictures(self.folder, done)}
<h2>Settings</h2><table>{"".join(rows)}</table>
</html>
"""


def keep_small(path: Path, step: int) -> None:
    """Keep a small JPEG of a figure beside it, as that of this step. Of more than MOST_EARLIER
    every other one goes, so that the rest stays evenly spread; and those of later steps, which a
    run that goes on from before them makes again."""
    with open_picture(path) as image:
        small = image.convert("RGB")
    small.thumbnail((EARLIER_PIXELS, EARLIER_PIXELS))
    figures.save_image(path.with_name(f"{path.stem}_step{step}.jpg"), small)
    there = _earlier(path.parent, path.stem)
    kept = [at for at in there if at <= step]
    kept = kept[::-2] if len(kept) > MOST_EARLIER else kept
    for at in there.keys() - set(kept):
        there[at].unlink()


def _earlier(folder: Path, stem: str = "") -> dict[int, Path]:
    """{step: the small copy of a figure}, in order."""
    found = {int(m[2]): path for path in folder.glob("*.jpg")
             if (m := EARLIER.fullmatch(path.name)) and stem in ("", m[1])}  # fmt: skip
    return dict(sorted(found.items()))


def _progress(
    done: int, steps: int, batch: int, goes_on: bool, records: Sequence[Mapping[str, Any]]
) -> str:
    """How far the run is, in words and as a bar."""
    speeds = [r["images_per_second"] for r in records[-5:] if r.get("images_per_second")]
    state = f"stopped after step {done:,} of {steps:,}; --resume goes on with it"
    if done >= steps:
        state = f"finished: {steps:,} steps"
    elif goes_on:
        state = f"training: step {done:,} of {steps:,}"
        if speeds and (speed := median(speeds)) > 0:
            state += f", {duration((steps - done) * batch / speed)} to go"
    as_of = time.strftime("as of %Y-%m-%d %H:%M:%S")
    as_of += f", at {speeds[-1]:,.0f} images/s" if speeds else ""
    return f"""<p><strong>{state}</strong></p><progress max="{steps}" value="{done}"></progress>
<p><small>{as_of}</small></p>"""


def _curves(title: str, keys: Sequence[str], records: Sequence[Mapping[str, Any]]) -> str:
    """A panel of curves over steps, each with its latest value; nothing where there is no point.
    What spans more than a factor of ten is drawn on a logarithmic scale."""
    curves = {k: [(r["step"], r[k]) for r in records if r.get(k) is not None] for k in keys}
    curves = {key: points for key, points in curves.items() if points}
    if not curves:
        return ""
    values = [value for points in curves.values() for _, value in points]
    low, high = min(values), max(values)
    last = max(points[-1][0] for points in curves.values())
    scale = math.log if low > 0 and high > 10 * low else float
    span, lines, names = scale(high) - scale(low) or 1.0, [], []

    def place(step: int, value: float) -> str:
        return f"{600 * step / (last or 1):.1f},{200 * (scale(high) - scale(value)) / span:.1f}"

    for i, (key, points) in enumerate(curves.items()):
        shown = points[:: -max(1, len(points) // MOST_POINTS)]  # the last one always
        at = " ".join(place(*point) for point in [*shown, points[0]])  # of one point: a dot
        words = f"{_words(key)} {points[-1][1]:.4g}"
        lines.append(f'<polyline class="c{i}" points="{at}"><title>{words}</title></polyline>')
        names.append(f'<span class="c{i}">{words}</span>')
    kind = ", log scale" * (scale is math.log)
    return f"""<figure><figcaption>{title}{kind}: {", ".join(names)}<br>{high:.4g}</figcaption>
<svg viewBox="0 -4 600 208" preserveAspectRatio="none" role="img">{"".join(lines)}</svg>
<figcaption class="ends"><span>{low:.4g}</span><span>step {last:,}</span></figcaption></figure>
"""


def _pictures(folder: Path, done: int) -> str:
    """The newest figures; first that of which there are earlier ones, which follow it."""
    earlier = {step: path for step, path in _earlier(folder).items() if step <= done}
    first = {path.name.rpartition("_step")[0] for path in earlier.values()}
    paths = [p for p in folder.glob("*.png") if p.is_file() and not p.is_symlink()]
    paths.sort(key=lambda p: (p.stem not in first, p.name))
    shown = [f"<h2>{_words(p.stem.capitalize())}</h2><figure>{_picture(p)}</figure>" for p in paths]
    strip = [f"<figure>{_picture(p)}<figcaption>step {step:,}</figcaption></figure>"
             for step, p in list(earlier.items())[-2::-1]]  # fmt: skip
    if strip:
        shown.insert(1, f'<h2>As they came along</h2><div class="strip">{"".join(strip)}</div>')
    return "\n".join(shown)


def _picture(path: Path) -> str:
    """A link to a picture, as the picture; a browser knows a newer one by its time."""
    address = escape(f"{quote(path.name)}?{path.stat().st_mtime_ns}")
    return f'<a href="{address}"><img src="{address}" alt="{_words(path.stem)}"></a>'


def _words(name: str) -> str:
    return escape(name.replace("_", " "))


def _said(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
