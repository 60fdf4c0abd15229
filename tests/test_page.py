"""A run's page: what it says, that it is safe, that it needs nothing from elsewhere, and that a
browser shows it."""

import functools
import http.server
import re
import shutil
import subprocess
import threading
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from helpers import interrupt, run_digits, run_encoder, write_images, write_mnist
from PIL import Image

from training import denoiser, page
from training.page import Page, keep_small
from training.records import append_record

BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome"
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
HOSTILE = "</table><script>alert(1)</script><img src=//x.example/y onerror='a' \"\x1b\0\udce4&amp;"


class Reader(HTMLParser):
    """What a page shows and asks for."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.links, self.text, self.heads = [], [], "", {}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.links += [found[k] for k in ("src", "href", "srcset", "data") if k in found]
        if "http-equiv" in found:
            self.heads[found["http-equiv"]] = found["content"]

    def handle_data(self, data):
        self.text += data


def check_links(folder):
    """All pictures lie beside the page, and nothing else is asked for."""
    read = Reader(folder / "index.html")
    links = [link for link in read.links if link != "data:,"]
    for link in links:
        assert re.fullmatch(r"[\w.%~-]+\?\d+", link), link
        assert (folder / unquote(link.partition("?")[0])).is_file(), link
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import", text)
    return read, {unquote(link.partition("?")[0]) for link in links}


def draw(path, step):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((300, 700, 3), step % 256, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """The figures of a run after 20 of 40 steps, with a picture whose name means something."""
    folder = tmp_path / "fig" / "mnist" / "a"
    for step in (5, 10, 15, 20):
        draw(folder / "samples.png", step)
        keep_small(folder / "samples.png", step)
        record = {"run": "a", "step": step, "loss": 100.0 / step, "images_per_second": 8.0}
        append_record(folder / "metrics.jsonl", {**record, "valid_ema": None})
    draw(folder / "a b%20\"'<i>?x#y.png", 7)
    return folder


def test_it_says_how_far_the_run_is_and_loads_itself_while_that_lasts(folder):
    shown = Page(folder, 40, 4, {"lr": 1e-3, "size": (64, 48), "epochs": None})
    shown.write(20)
    read, links = check_links(folder)
    assert "training: step 20 of 40, about 10 s to go" in read.text and "64x48" in read.text
    assert read.heads["refresh"] == "60" and "epochs" not in read.text
    earlier = {f"samples_step{step}.jpg" for step in (5, 10, 15)}  # the newest is there large
    assert links == {"samples.png", "a b%20\"'<i>?x#y.png", *earlier}
    assert "script" not in read.tags and read.tags.count("polyline") == 1
    assert "loss 5" in read.text and "step 20" in read.text

    shown.write(20, goes_on=False)
    read, _ = check_links(folder)
    assert "stopped after step 20 of 40; --resume" in read.text and "refresh" not in read.heads
    shown.write(40, goes_on=False)
    read, _ = check_links(folder)
    assert "finished: 40 steps" in read.text and "refresh" not in read.heads


def test_whatever_names_and_settings_say_is_text(tmp_path):
    """Also bytes that are no UTF-8, as paths may have them."""
    folder = tmp_path / "fig" / "mnist" / "<script>alert('a')<!--"
    draw(folder / "samples.png", 1)
    Page(folder, 4, 4, {"data": HOSTILE, "<b>": HOSTILE}).write(1)
    read, links = check_links(folder)
    tags = set(read.tags)
    assert not tags & {"script", "b", "i"} and read.tags.count("img") == 1
    assert links == {"samples.png"} and "script-src 'none'" in str(read.heads)
    assert read.text.count("<script>alert(1)</script>") == 2 and folder.name in read.text


def test_records_may_hold_any_numbers(folder):
    """None of them keeps the page from being written."""
    for loss in (0, -1e299, 1e299, None, True, "x", [1], float("nan")):
        append_record(folder / "metrics.jsonl", {"run": "a", "step": 10**400, "loss": loss})
        append_record(folder / "metrics.jsonl", {"run": "a", "step": -3, "loss": loss})
        before = folder / "index.html"
        before.unlink(missing_ok=True)
        Page(folder, 40, 4, {}).write(20)
        assert before.is_file(), loss
    (folder / "metrics.jsonl").unlink()
    Page(folder, 40, 4, {}).write(0)
    assert "polyline" not in Reader(folder / "index.html").tags


def test_a_page_that_cannot_be_written_is_told_and_no_more(folder, capsys):
    (folder / "index.html").mkdir()
    Page(folder, 40, 4, {}).write(20)
    assert "page not written: " in capsys.readouterr().out


def test_it_is_written_again_when_it_is_old(folder, monkeypatch):
    shown, file = Page(folder, 40, 4, {}), folder / "index.html"
    shown.refresh(1)
    assert "step 1 of" in file.read_text()
    shown.refresh(2)
    assert "step 1 of" in file.read_text()
    monkeypatch.setattr(page, "EVERY", 0)
    shown.refresh(3)
    assert "step 3 of" in file.read_text()


def test_it_costs_little(folder):
    """With as many records as a very long run has, and ten earlier figures."""
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(f'{{"run": "a", "step": {s}, "loss": {s + 1}}}\n' for s in range(21, 5021))
    for step in range(21, 31):
        keep_small(folder / "samples.png", step)
    began = time.process_time()
    Page(folder, 5021, 4, {}).write(5020)
    assert time.process_time() - began < 1
    assert (folder / "index.html").stat().st_size < 100_000


def test_earlier_figures_stay_few_small_and_spread(tmp_path):
    """Those of later steps go, when a run goes on from before them."""
    path = tmp_path / "samples.png"
    draw(tmp_path / "samples_step7.png", 1)  # not one of them
    for step in range(1, 60):
        draw(path, step)
        keep_small(path, step)
        kept = sorted(int(p.stem.partition("_step")[2]) for p in tmp_path.glob("*.jpg"))
        assert kept[-1] == step and len(kept) <= page.MOST_EARLIER
    assert len(kept) > 4 and kept[0] < 30
    keep_small(path, 50)
    left = {int(p.stem.partition("_step")[2]) for p in tmp_path.glob("*.jpg")}
    assert left == {step for step in kept if step < 50} | {50}
    with Image.open(tmp_path / "samples_step50.jpg") as small:
        assert max(small.size) == page.EARLIER_PIXELS
    assert (tmp_path / "samples_step7.png").is_file()


@pytest.fixture
def digits(tmp_path, monkeypatch):
    write_mnist(tmp_path / "data", train=64, test=8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(denoiser, "PREVIEW_STEPS", 2)


def test_a_run_that_is_stopped_and_finished_says_so(digits, monkeypatch):
    folder = Path("fig/mnist/a")
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=3)
        run_digits("--steps", 5, "--batch", 8, "--channels", 8, "--name", "a")
    read, links = check_links(folder)
    assert "stopped after step 3 of 5" in read.text and not links
    run_digits("--resume")
    read, links = check_links(folder)
    assert "finished: 5 steps" in read.text
    assert links == {"samples.png", "losses.png", "predictions.png", "bands.png"}
    assert {p.name for p in folder.glob("*.jpg")} == {"samples_step5.jpg"}
    assert not Path("fig/mnist/index.html").exists()


def test_an_autoencoder_has_one_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures", 8, (16, 16))
    small = ("--size", "16x16", "--steps", 2, "--batch", 4, "--channels", 8, "--gan-weight", 0)
    run_encoder("--data", "pictures", *small, "--name", "a")
    read, links = check_links(Path("fig/autoencoder/a"))
    assert "finished: 2 steps" in read.text and "psnr ema" in read.text
    assert {"reconstructions.png", "latents.png", "losses.png"} == links


PROBE = """<!DOCTYPE html><iframe id=f src="index.html" width=390 height=800></iframe>
<pre id=o></pre><script>f.onload = () => {
  const d = f.contentDocument, w = f.contentWindow
  o.textContent = [...d.images].map(i => i.getAttribute("src") + " " + i.naturalWidth).join("\\n")
    + "\\nrequests " + w.performance.getEntriesByType("resource").map(e => e.name).join(" ")
    + "\\nwidth " + d.documentElement.scrollWidth + "\\nfont " + w.getComputedStyle(d.body).fontSize
}</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_all_of_it_and_asks_nobody_else(folder, tmp_path):
    """In a window as wide as a phone."""
    Page(folder, 40, 4, {"data": HOSTILE, "long": "x" * 400}).write(20)
    (folder / "probe.html").write_text(PROBE)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = f"http://127.0.0.1:{server.server_port}/"
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                   f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
                   "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                   own + "probe.html"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        server.shutdown()
    said = re.search(r"<pre id=.*?>\n?(.*)</pre>", done.stdout, re.DOTALL)
    assert said, done.stderr[-2000:]
    lines = dict(line.rsplit(" ", 1) for line in said[1].strip().split("\n") if " " in line
                 and not line.startswith("requests"))  # fmt: skip
    requests = re.search(r"^requests (.*)$", said[1], re.MULTILINE)[1].split(" ")
    assert lines.pop("font") == "17px" and int(lines.pop("width")) <= 390
    assert len(lines) == 5 and all(int(width) > 0 for width in lines.values())
    assert len(requests) == 5 and all(request.startswith(own) for request in requests)
    assert len(asked) >= 7  # the probe and the page too
