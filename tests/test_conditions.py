"""What is asked of a denoiser, from names to pictures: with both scripts, as a user does."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    CPU,
    assert_same_weights,
    cpu,
    interrupt,
    randomize,
    run_digits,
    run_latent,
    run_script,
    scheduler,
    small_autoencoder,
    write_images,
    write_mnist,
)
from PIL import Image

from common.errors import UserError
from data.labels import CELEBA_TABLE, Labels
from generation.classifier import CONFIG
from generation.conditions import Asked, Guidance, asked_for, conditions_of, folder_name
from generation.evaluation_asked import measure_attributes, measure_classes, print_table
from generation.pipeline import Pipeline
from models.classifier import Classifier
from models.diffusion import epsilon
from models.draws import Draws
from models.guidance import conditioned
from models.unet import UNet, UNetConfig
from training import figures
from training.beginning import with_labels
from training.checkpoint import load_facts, load_model, load_state, save_model, save_state
from training.codec import PixelCodec
from training.conditions import use_labels
from training.denoiser import DenoiserLearner
from training.records import read_metrics

DIGITS = tuple("0123456789")
FACES = ("Bangs", "Eyeglasses", "No_Beard", "Smiling")
SMALL = ("--batch", 8, "--channels", 8)


def network(kind="classes", count=10, in_channels=1):
    config = UNetConfig(in_channels, (8, 16), 1, 8, 0.0, **{kind: count} if kind else {})
    return randomize(UNet(config))


def facts(kind="classes", names=DIGITS):
    return {"condition": {"kind": kind, "names": list(names), "source": "labels"}}


def asked(text, kind="classes", names=DIGITS, guidance=Guidance()):  # noqa: B008 (it is frozen)
    flag = {"classes": "label", "attributes": "attributes"}[kind]
    rows = asked_for("d", facts(kind, names), network(kind, len(names)), guidance, **{flag: text})
    return {row.name: row.c[0].tolist() for row in rows}


# ---- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [("7", [7]), ("0-9", list(range(10))), ("3,1", [3, 1]), ("8, 2-4,8", [8, 2, 3, 4])],
)
def test_labels_are_names_and_ranges(text, found):
    assert asked(text) == {str(i): i for i in found}


def test_names_may_have_anything_in_them():
    names = ("a-b", "a", "b", "c,d", "c")
    known = {"a-b": ["a-b"], "c,d": ["c,d"], "a-b,a": ["a-b", "a"], "a-c": [*names[1:]]}
    for text, found in known.items():
        assert list(asked(text, names=names)) == found


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("Smiling,-Eyeglasses", {"Smiling,-Eyeglasses": [0, -1, 0, 1]}),
        (" Bangs , +Smiling", {"Bangs,+Smiling": [1, 0, 0, 1]}),
        (";Bangs;-Bangs", {"anything": [0] * 4, "Bangs": [1, 0, 0, 0], "-Bangs": [-1, 0, 0, 0]}),
    ],
)  # fmt: skip
def test_attributes_are_asked_for_or_against(text, rows):
    assert asked(text, "attributes", FACES) == rows


@pytest.mark.parametrize(
    ("text", "kind", "names", "message"),
    [
        ("Smilling", "attributes", FACES, "trained on Smilling; did you mean Smiling.*Bangs, Eye"),
        ("-eyeglasses", "attributes", FACES, "did you mean Eyeglasses"),
        ("Bangs,-Bangs", "attributes", FACES, "Bangs is asked for twice"),
        ("17", "classes", DIGITS, "trained on 17; did you mean [17]"),
        ("", "classes", DIGITS, "trained on ; did you mean"),
        ("9-0", "classes", DIGITS, "--label 9-0 is an empty range"),
    ],
)
def test_what_nobody_was_trained_on_is_one_sentence(text, kind, names, message):
    with pytest.raises(UserError, match=message):
        asked(text, kind, names)


@pytest.mark.parametrize(
    ("kind", "typed", "message"),
    [
        ("", {"label": "7"}, "d was trained without --condition"),
        ("", {"attributes": "Smiling"}, "d was trained without --condition"),
        ("classes", {"attributes": "Smiling"}, "--attributes: d knows classes, not attributes"),
        ("attributes", {"label": "7"}, "--label: d knows attributes, not classes"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(kind, typed, message):
    with pytest.raises(UserError, match=message):
        asked_for("d", facts(kind), network(kind), Guidance(2.0), **typed)


@pytest.mark.parametrize(
    "wrong",
    [None, 7, {}, {"kind": "classes"}, {"kind": "attributes", "names": list(DIGITS)},
     {"kind": "classes", "names": list(DIGITS[1:])}, {"kind": "classes", "names": ["7"] * 10},
     {"kind": "classes", "names": list(range(10))}],
)  # fmt: skip
def test_facts_of_conditions_may_say_anything(wrong):
    with pytest.raises(UserError, match="d is damaged"):
        conditions_of("d", {"condition": wrong}, network())
    assert conditions_of("d", {"condition": wrong}, network("")) == ("", [])


def test_names_of_folders_lead_nowhere_else():
    for name in ("../../x", "/etc", "..", "", "a\x00b", "x" * 500, "Smiling,-Hat"):
        made = Path(folder_name(name))
        assert len(made.parts) == 1 and made.name not in ("", "..", ".") and len(made.name) <= 100
    assert folder_name("Smiling,-Hat") == "Smiling,-Hat"


# ---- Pictures -----------------------------------------------------------------------------------


def pipeline(request=None, batch=3):
    s, settings = scheduler(clip_x0=True), {"eta": 0.0, "sigma_scale": 1.0}
    how = "ddim", 3, settings, batch
    return Pipeline(cpu(), network(), s, (1, 8, 8), PixelCodec(), *how, request)


def pictures(*args, **settings):
    return torch.cat([x0 for _, _, x0 in pipeline(*args, **settings).batches(range(7))])


def test_the_same_seed_shows_what_it_is_asked_for():
    """Each of a batch its own; guidance 0 is nothing asked, and 1 is not to guide."""
    for guidance in (Guidance(), Guidance(3.0), Guidance(3.0, [100, 800])):
        together = pictures(Asked("all", torch.arange(10), guidance))
        for seed in range(7):
            alone = pictures(Asked("one", torch.tensor([seed]), guidance))
            torch.testing.assert_close(together[seed], alone[seed], rtol=0, atol=1e-5)
    free, seven = pictures(), pictures(Asked("7", torch.tensor([7]), Guidance()))
    unguided = pictures(Asked("7", torch.tensor([7]), Guidance(0.0)))
    torch.testing.assert_close(unguided, free, rtol=0, atol=1e-5)
    assert not torch.allclose(free, seven, atol=1e-3)
    label = pipeline(Asked("7", torch.tensor([7]), Guidance(2.0, [1, 5]))).label
    assert label == "ddim, 3 steps, eta 0, sigma_scale 1, 7, guidance 2 at t 1 to 5"


@pytest.fixture
def digits(tmp_path, monkeypatch, no_figures):
    """Work in a folder with 64 digits and what they are; runs draw no figures."""
    write_mnist(tmp_path / "data", train=64, test=8, labels=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "show_window", lambda path: None)
    return tmp_path


def save_digits(path="d.safetensors", kind="classes"):
    known = {
        "space": "pixels",
        "shape": [1, 8, 8],
        "scheduler": vars(scheduler(clip_x0=True).config),
    }
    known["shape"] = [1, 28, 28]
    save_model(path, network(kind), known | (facts() if kind else {}))


def show(*flags, script="mnist_diffusion.py", check=True):
    steps = ("--show", "d.safetensors", "--sampling-steps", 2, *CPU)
    return run_script(script, *steps, *flags, cwd=".", check=check)


def test_rows_are_of_the_same_seeds(digits, monkeypatch):
    """A figure with a row each, or a folder each; a single label is as any pictures are."""
    save_digits()
    seen = {}
    monkeypatch.setattr(figures, "image_rows", lambda path, rows, title: seen.update(rows))
    show("--label", "0-9", "--num-images", 2, "--seed", 5, "--batch", 7)
    assert list(seen) == list(DIGITS) and {len(x) for x in seen.values()} == {2}
    show("--label", "3,4", "--num-images", 2, "--seed", 5, "--out", "made")
    for name in "34":
        for i in range(2):
            x = torch.from_numpy(np.array(Image.open(f"made/{name}/seed00000{5 + i}.png")))
            assert (x - (seen[name][i, 0] + 1) * 127.5).abs().max() <= 1.01
    show("--label", "3", "--num-images", 2, "--seed", 5, "--out", "one")
    assert Image.open("one/seed000005.png").text["asked"] == "3"
    assert Path("one/seed000006.png").read_bytes() == Path("made/3/seed000006.png").read_bytes()


def test_a_folder_holds_what_was_asked_for_once(digits):
    save_digits()
    show("--label", "3", "--num-images", 2, "--out", "made")
    for flags, found in ((["--label", "4"], "4"), ([], "anything"),
                         (["--label", "3", "--guidance", 2], "3, guidance 2")):  # fmt: skip
        status, _, err = show(*flags, "--num-images", 2, "--out", "made", check=False)
        assert status == 2 and f"was made with asked 3, not {found}" in err


@pytest.mark.parametrize("flag", [["--film"], ["--interpolate", 1, 2], ["--out", "a.jpg"]])
def test_several_rows_are_no_other_figure(digits, flag):
    save_digits()
    status, _, err = show("--label", "1,2", *flag, check=False)
    assert status == 2 and "several rows are a figure of their own" in err and err.count("\n") == 1


@pytest.mark.parametrize("made", [["--film"], ["--interpolate", 1, 2]])
def test_figures_show_what_is_asked_for(digits, made):
    save_digits()
    show("--label", "7", *made, "--num-images", 2, "--guidance", 2)
    assert len(list(Path("fig/mnist").glob("*.png"))) == 1


def test_an_edit_shows_what_is_asked_for(digits):
    """At strength 1, and with all masked, it is the plain picture that was asked for; the way back
    from a picture's noise asks, too."""
    save_digits()
    Image.new("L", (28, 28), 90).save("p.png")
    Image.new("L", (28, 28), 255).save("white.png")
    asked = ("--label", "7", "--guidance", 2, "--num-images", 1)
    show(*asked, "--out", "plain")
    show(*asked, "--vary", "p.png", "--strength", 1, "--out", "varied")
    masked = ("--mask", "white.png", "--resampling", 1)
    show(*asked, "--inpaint", "p.png", *masked, "--out", "inpainted")
    plain = Path("plain/seed000000.png").read_bytes()
    for path in ("varied/strength1_seed000000.png", "inpainted/seed000000.png"):
        made = np.array(Image.open(path)).astype(int)
        assert abs(made - np.array(Image.open("plain/seed000000.png"))).max() <= 1, path
    made = []
    for label in (["--label", "3"], ["--label", "7"], []):
        show("--invert", "p.png", *label, "--out", f"back{len(made)}")
        made.append(Path(f"back{len(made)}/result.png").read_bytes())
    assert len({plain, *made}) == 4
    for edit in (["--vary", "p.png"], ["--invert", "p.png"]):
        status, _, err = show("--label", "1,2", *edit, check=False)
        assert status == 2 and "an edit takes one row" in err and err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--label", "7"], ["--label", "7", "--guidance", 2]])
def test_a_denoiser_without_conditions_is_asked_for_nothing(digits, flags):
    save_digits(kind="")
    status, _, err = show(*flags, check=False)
    assert status == 2 and err.count("\n") == 1
    assert err.endswith("was trained without --condition: it cannot be asked for anything\n")
    evaluate = ("--evaluate", "d.safetensors", "--guidance", 2, *CPU)
    status, _, err = run_script("mnist_diffusion.py", *evaluate, cwd=".", check=False)
    assert status == 2 and "--guidance: d.safetensors was trained without --condition" in err


# ---- Training -----------------------------------------------------------------------------------


def test_digits_with_labels_resume_to_the_bit(digits, monkeypatch):
    common = ("--steps", 6, *SMALL, "--condition", "labels")
    run_digits(*common, "--name", "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, after=4)
        with pytest.raises(KeyboardInterrupt):
            run_digits(*common, "--name", "parts")
    run_digits("--resume", "parts")
    folder = Path("checkpoints/mnist")
    paths = [folder / f"{name}_epoch0001.safetensors" for name in ("whole", "parts")]
    assert_same_weights("UNet", *paths)
    model, known = load_model(paths[0], "UNet")
    assert (model.config.classes, known["condition"]["names"]) == (10, list(DIGITS))
    assert model.class_embedding.weight.abs().max() > 0
    run_digits(*common, "--name", "accumulated", "--accumulate", 2)
    rows = [read_metrics(f"fig/mnist/{n}/metrics.jsonl", n)[0] for n in ("whole", "accumulated")]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)


def test_a_run_keeps_its_labels(digits):
    run_digits("--steps", 2, *SMALL, "--condition", "labels", "--name", "a")
    assert load_state("checkpoints/mnist/a.state")["settings"]["condition"] == "labels"
    with pytest.raises(UserError, match="--condition: the run to resume has labels; leave it out"):
        run_digits("--resume", "a", "--condition", "none", "--steps", 4)
    path = Path("data/MNIST/raw/train-labels-idx1-ubyte")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([(content[-1] + 1) % 10]))
    with pytest.raises(UserError, match="the labels are not those that the run a was begun with"):
        run_digits("--resume", "a", "--steps", 4)


def test_a_run_from_before_conditions_goes_on_without(digits):
    """Its settings do not name them; and a plain run's checkpoint says nothing of any."""
    run_digits("--steps", 2, *SMALL, "--name", "a")
    path = "checkpoints/mnist/a.state"
    state = load_state(path)
    del state["settings"]["condition"]
    save_state(path, state)
    run_digits("--resume", "a", "--steps", 3)
    known = load_facts("checkpoints/mnist/a_epoch0001_step3.safetensors")
    assert "condition" not in known and set(state["ids"]) == {"data"}


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("classes", None),
        ("attributes", Labels("classes", DIGITS, {})),
        ("classes", Labels("classes", DIGITS[1:], {})),
        ("classes", Labels("classes", DIGITS[::-1], {})),
    ],
)
def test_a_network_to_begin_with_forgets_other_labels(kind, labels, capsys):
    """And makes what it made where nothing is asked, also of names that are as many."""
    model = network(kind)
    began = with_labels(model, labels, facts(kind))
    assert "can be asked for is forgotten" in capsys.readouterr().out
    counts = (began.config.classes, began.config.attributes)
    assert counts == (len(labels.names) if labels else 0, 0)
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([3, 50, 700])
    torch.testing.assert_close(began(x, t), model(x, t), rtol=1e-4, atol=1e-5)
    ids, known = use_labels(labels, {"data": "d"}, None)
    wanted = {"data": "d", "labels": labels.digest()} if labels else {"data": "d"}
    assert ids == wanted and ("condition" in known) == (labels is not None)


@pytest.mark.parametrize("kind", ["classes", "attributes"])
def test_a_network_without_conditions_may_learn_them(kind):
    """Where nothing is asked it is at first the same, and what is asked matters at once."""
    plain = randomize(network(""))
    labels = Labels(kind, DIGITS, {})
    asked = with_labels(plain, labels, {})
    known = facts(kind)
    assert getattr(asked.config, kind) == 10 and with_labels(asked, labels, known) is asked
    assert with_labels(None, labels, {}) is None and with_labels(plain, None, {}) is plain
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([3, 50, 700])
    c = torch.tensor([1, 4, 7]) if kind == "classes" else torch.ones(3, 10)
    for nothing in (None, asked.nothing(3)):
        assert torch.equal(asked(x, t, nothing), plain(x, t))
    assert not torch.allclose(asked(x, t, c), plain(x, t))


def test_digits_go_on_with_labels(digits):
    run_digits("--steps", 2, *SMALL, "--name", "a")
    (path,) = Path("checkpoints/mnist").glob("a_epoch*.safetensors")
    run_digits("--init", path, "--condition", "labels", "--steps", 2, *SMALL, "--name", "b")
    (path,) = Path("checkpoints/mnist").glob("b_epoch*.safetensors")
    assert load_model(path, "UNet")[0].config.classes == 10
    run_digits("--resume", "b", "--steps", 3)


def test_a_class_is_learnt():
    """Of black and of white images: asked for the right class, the network errs by far less."""
    torch.manual_seed(0)
    s, model = scheduler(prediction="v"), UNet(UNetConfig(1, (8,), 1, 1, 0.0, classes=2))
    settings = {"optimizer": "adamw", "lr": 5e-3, "ema": 0.9}
    learner = DenoiserLearner(model, s, cpu(), **settings, t_density="uniform", min_snr=0.0)
    c = torch.arange(16) % 2
    x0, t = (2.0 * c - 1).view(-1, 1, 1, 1).expand(-1, 1, 4, 4), torch.full((16,), 900)
    for step in range(60):
        learner.step(x0, 1.0, Draws(0, step, range(16)), c)
    with torch.no_grad():
        eps = torch.randn(x0.shape)
        xt = s.add_noise(x0, eps, t)
        right, wrong = (
            s.predict_x0(xt, epsilon(conditioned(model, asked), s)(xt, t), t)
            for asked in (c, 1 - c)
        )
    assert (right - x0).square().mean() < 0.7 * (wrong - x0).square().mean()


# ---- Latents ------------------------------------------------------------------------------------


@pytest.fixture
def faces(tmp_path, monkeypatch, no_figures):
    """Work in a folder with 40 pictures, a table of them, and an untrained autoencoder."""
    for kind in "ab":
        write_images(tmp_path / "pictures" / kind, 20, (16, 16), seed=ord(kind))
    rows = [f"{k}/{i:02d}.jpg {(-1) ** i} 1 -1 1" for k in "ab" for i in range(20)]
    (tmp_path / CELEBA_TABLE).write_text("\n".join(["40", " ".join(FACES), *rows]))
    monkeypatch.chdir(tmp_path)
    known = {"data": "pictures", "data_root": "data", "size": [16, 16]}
    save_model("checkpoints/autoencoder/a.safetensors", randomize(small_autoencoder()), known)
    return tmp_path


def train_faces(*flags):
    coder = ("--encoder", "checkpoints/autoencoder/a.safetensors")
    run_latent(*coder, "--batch", 4, "--channels", 8, "--steps", 3, *flags)


def test_one_cache_serves_with_and_without_labels(faces):
    train_faces("--name", "plain", "--mirror")
    before = {p: p.read_bytes() for p in Path("encoded_img").rglob("*") if p.is_file()}
    rows = "".join(f"{i:02d}.png,{i % 3}\n" for i in range(20))
    Path("a.csv").write_text(f"name,label\n{rows}")
    for name, source, kind in (("table", "attributes", "attributes"), ("sub", "folders", "classes"),
                               ("mine", "a.csv", "classes")):  # fmt: skip
        train_faces("--name", name, "--mirror", "--condition", source)
        model, known = load_model(f"checkpoints/denoiser/{name}_epoch0001.safetensors", "UNet")
        names = {"attributes": list(FACES), "folders": ["a", "b"], "a.csv": ["0", "1", "2"]}[source]
        assert known["condition"] == {"kind": kind, "names": names, "source": source}
        assert getattr(model.config, kind) == len(names)
    assert before == {p: p.read_bytes() for p in Path("encoded_img").rglob("*") if p.is_file()}


def test_faces_with_attributes_are_shown_and_evaluated(faces, monkeypatch):
    monkeypatch.setattr(figures, "show_window", lambda path: None)
    train_faces("--name", "f", "--condition", "attributes")
    Path("d.safetensors").write_bytes(
        Path("checkpoints/denoiser/f_epoch0001.safetensors").read_bytes()
    )
    asking = ("--attributes", ";Smiling;Smiling,-Eyeglasses", "--guidance", 2, "--num-images", 2)
    show(*asking, "--out", "rows.png", script="latent_diffusion.py")
    assert figures.made_here("rows.png")
    status, _, err = show("--attributes", "Smilling", script="latent_diffusion.py", check=False)
    assert status == 2 and "did you mean Smiling?" in err and err.count("\n") == 1
    flags = ("--guidance", 2, "--num-images", 2, "--sampling-steps", 2)
    _, out, _ = run_script(
        "latent_diffusion.py", "--evaluate", "d.safetensors", *flags, *CPU, cwd="."
    )
    assert "attributes of real images, guidance 2" in out
    Path(CELEBA_TABLE).unlink()
    status, _, err = run_script(
        "latent_diffusion.py", "--evaluate", "d.safetensors", *flags, *CPU, cwd=".", check=False
    )
    assert status == 2 and f"no {CELEBA_TABLE} beside the images" in err


# ---- Measured -----------------------------------------------------------------------------------


def test_the_share_of_digits_that_is_read_as_asked(monkeypatch):
    """Of pictures whose grey says what they are, by a classifier that reads it."""
    model = Classifier(CONFIG).eval()
    monkeypatch.setattr(Classifier, "forward", lambda self, x: -(
        (x.mean(dim=(1, 2, 3))[:, None] + 1) * 5 - torch.arange(10)).abs())  # fmt: skip
    asked = torch.arange(40) % 10
    shown = torch.where(torch.arange(40) % 4 == 0, 0, asked)
    pictures = (shown * 25).to(torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28)
    real = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    labels = torch.tensor([0, 0, 5])
    found = measure_classes(model, pictures.split(7), asked, real, labels)
    assert found["all"]["read as asked"] == pytest.approx((asked == shown).double().mean())
    assert found["all"]["real images"] == pytest.approx(2 / 3)
    nothing = {"real images": None, "Frechet distance": None}
    assert found["3"] == {"read as asked": 1.0, **nothing}
    assert found["2"] == {"read as asked": 0.5, **nothing}


def test_the_share_of_attributes_that_is_read_as_asked(monkeypatch, capsys):
    """Of pictures whose first two colours are two attributes; 0 is not counted."""
    model = Classifier(CONFIG).eval()
    monkeypatch.setattr(Classifier, "forward", lambda self, x: x.mean(dim=(2, 3))[:, :2])

    def drawn(rows):
        values = torch.tensor([[*row, 0] for row in rows]) * 100 + 128
        return values.to(torch.uint8)[:, :, None, None].expand(-1, 3, 4, 4)

    # Of four pictures one lacks a hat; of three real ones the second cannot be read.
    asked = torch.tensor([[1, 1], [1, -1], [-1, 0], [0, 1]])
    pictures = [drawn([(1, 1), (1, -1)]), drawn([(-1, 1), (-1, -1)])]
    real = [(drawn([(1, -1), (-1, -1)]), [0, 2])]
    labels = torch.tensor([[1, -1], [1, 1], [1, -1]])
    found = measure_attributes(model, ("Glasses", "Hat"), pictures, asked, real, labels)
    assert found["Glasses"] == {
        "read as asked": 1, "read as asked, with it": 1, "read as asked, without": 1,
        "real images": 0.5, "real images, with it": 0.5, "real images, without": None,
    }  # fmt: skip
    assert found["Hat"]["read as asked"] == pytest.approx(2 / 3)
    assert found["Hat"]["read as asked, with it"] == 0.5
    assert found["Glasses and Hat"] == {"read as asked": 1, "real images": 0.5}

    # A number stands below the name of its column.
    print_table(found)
    head, *_, both = capsys.readouterr().out.splitlines()[2:]
    ends = [head.index(f" {column} ") + len(column) + 1
            for column in ("read as asked", "real images")]  # fmt: skip
    assert [m.end() for m in re.finditer(r"[0-9.]+%", both)] == ends

    # Of many attributes, pairs are in the record alone.
    names = [f"attribute {i}" for i in range(40)]
    row = dict.fromkeys(found["Hat"], 0.5)
    pairs = {" and ".join(two): found["Glasses and Hat"] for two in combinations(names, 2)}
    print_table(dict.fromkeys(names, row) | pairs)
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 44 and "and 780 rows" in said
