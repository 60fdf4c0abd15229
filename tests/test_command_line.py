"""The command line: flags in their modes, frozen arguments, defaults, what resuming takes."""

import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT

from command_line import editing, finish
from command_line.defaults import default_size
from command_line.flags import ALL, EVALUATE, SHOW, TRAIN, Resuming
from command_line.parsers import parse_encoder, parse_latent, parse_mnist
from common import choices
from common.errors import UserError
from common.version import NAME, __version__

# What begins each mode of each script.
MODES = {
    parse_mnist: {TRAIN: ["--train"], SHOW: ["--show", "c"], EVALUATE: ["--evaluate", "c"]},
    parse_encoder: {TRAIN: [], EVALUATE: ["--evaluate", "c"]},
    parse_latent: {TRAIN: ["--train", "--encoder", "e"], SHOW: ["--show", "c"],
                   EVALUATE: ["--evaluate", "c"]},
}  # fmt: skip
SCRIPTS = list(MODES)
MODE_FLAGS = {TRAIN, SHOW, EVALUATE}
# Two values of each flag that is no switch, of which neither need be the default.
NAMES = {
    "lr_schedule": choices.LR_SCHEDULES, "log": choices.LOGS,
    "optimizer": choices.OPTIMIZERS, "prediction": choices.PREDICTIONS, "sampler": ("ddim", "ddpm"),
    "schedule": choices.SCHEDULES, "t_density": choices.T_DENSITIES,
    "perceptual_network": ("vgg16", "squeezenet"),
    "precision": choices.PRECISIONS, "compile": ("on", "off"), "device": ("cpu", "cuda"),
    "size": ("16x32", "32x16"), "name": ("a", "b"), "resume": ("a", "b"), "out": ("a", "b"),
    "data": ("a", "b"), "data_root": ("a", "b"), "encoder": ("a", "b"), "init": ("a", "b"),
    "export": ("a", "b"),
    "channels": ("8", "16"), "attention": ("2", "1,2"),
    "batch": ("5", "3"), "interpolate": ("3 4", "5 6"), "guidance_interval": ("3 4", "5 6"),
    "condition": ("folders", "a.csv"), "label": ("a", "b"), "attributes": ("a", "b"),
    "inpaint": ("a", "b"), "mask": ("a", "b"), "vary": ("a", "b"), "reconstruct": ("a", "b"),
    "invert": ("a", "a b"),
}  # fmt: skip
FRACTIONS = {"lr", "ema", "dropout", "min_snr", "kl_weight", "gan_weight", "eta", "sigma_scale",
             "time_limit", "strength", "guidance", "perceptual_weight"}  # fmt: skip
COUNTS = {"epochs", "steps", "seed", "blocks", "latent_channels", "num_images", "sampling_steps",
          "workers", "keep", "save_every", "accumulate", "resampling"}  # fmt: skip
# What a flag needs beside it to mean something.
ASKED = ["--label", "a"]
NEEDS = {
    ("eta", SHOW): ["--sampler", "ddim"], ("eta", EVALUATE): ["--sampler", "ddim"],
    ("freeze_encoder", TRAIN): ["--init", "c"], ("inpaint", SHOW): ["--mask", "m"],
    ("mask", SHOW): ["--inpaint", "i"], ("resampling", SHOW): ["--inpaint", "i", "--mask", "m"],
    ("strength", SHOW): ["--vary", "v"], ("guidance", SHOW): ASKED,
    ("guidance_interval", SHOW): ["--guidance", "2", *ASKED],
    ("guidance_interval", EVALUATE): ["--guidance", "2"],
    ("perceptual_network", TRAIN): ["--perceptual-weight", "1"],
}  # fmt: skip


def is_switch(parse, name):
    return parse(MODES[parse][TRAIN]).flags[name].default is False


def typed(parse, name, which=0):
    """The words that give the flag one of two values."""
    flag = "--" + name.replace("_", "-")
    if is_switch(parse, name):
        return [flag]
    if name in FRACTIONS:
        return [flag, ("0.25", "0.5")[which]]
    names = ("labels", "none") if (parse, name) == (parse_mnist, "condition") else NAMES.get(name)
    return [flag, *(("3", "5") if name in COUNTS else names)[which].split()]


def of_training(args):
    """The flags that may be typed in a training, but for those that say what is done."""
    start = {*MODE_FLAGS, "resume"}
    return [f for f in args.flags.values() if TRAIN in f.modes and f.name not in start]


def every_flag_and_mode():
    for parse, modes in MODES.items():
        for name in sorted(set(parse(modes[TRAIN]).flags) - MODE_FLAGS):
            for mode in modes:
                yield pytest.param(parse, name, mode, id=f"{parse.__name__}-{name}-{mode}")


def every_flag_of_training():
    for parse, modes in MODES.items():
        for flag in of_training(parse(modes[TRAIN])):
            yield pytest.param(parse, flag.name, id=f"{parse.__name__}-{flag.name}")


# ---- Modes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("parse", SCRIPTS)
def test_every_value_is_a_flags(parse):
    """Each has modes among those of its script, and is an attribute; there is no other."""
    for mode, start in MODES[parse].items():
        args = parse(start)
        assert args.mode == mode
        assert set(vars(args)) - {"given", "flags", "images", "deadline"} == set(args.flags)
        for name, flag in args.flags.items():
            assert flag.name == name and flag.modes and flag.modes <= ALL
            assert flag.modes & set(MODES[parse]), f"{flag} goes with no mode of the script"


@pytest.mark.parametrize(("parse", "name", "mode"), list(every_flag_and_mode()))
def test_a_mode_takes_exactly_the_flags_that_list_it(parse, name, mode, capsys):
    start = MODES[parse][mode]
    if (parse, name, mode) == (parse_mnist, "data_root", SHOW):  # below
        start = [*start, "--neighbours"]
    modes = parse(MODES[parse][TRAIN]).flags[name].modes
    words = [*start, *typed(parse, name)]
    if mode in modes:
        args = parse([*words, *NEEDS.get((name, mode), [])])
        assert name in args.given and args.mode == mode
    else:
        with pytest.raises(SystemExit) as end:
            parse(words)
        assert end.value.code == 2
        assert f"{typed(parse, name)[0]} does not go with --{mode}\n" in capsys.readouterr().err


def test_digits_are_shown_without_data_but_for_their_neighbours(capsys):
    with pytest.raises(SystemExit):
        parse_mnist(["--show", "c", "--data-root", "a"])
    assert "--data-root does not go with --show" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parse", "flags", "message"),
    [
        (parse_latent, ["--out", "a.png"], "--evaluate makes a folder"),
        (parse_latent, ["--train", "--encoder", "a"], "not allowed with argument"),
        (parse_mnist, ["--show", "d"], "not allowed with argument"),
        (parse_encoder, ["--seed", "1"], "--seed does not go with --evaluate"),
        (parse_encoder, ["--gan-weight", "1"], "--gan-weight does not go with --evaluate"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together(parse, flags, message, capsys):
    with pytest.raises(SystemExit):
        parse(["--evaluate", "c.safetensors", *flags])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--guidance", "2"], "--guidance needs --attributes or --label"),
        (["--label", "a", "--guidance-interval", "1", "2"], "needs --guidance other than 1"),
        (["--label", "a", "--guidance", "2", "--guidance-interval", "3", "2"], "3 to 2 is empty"),
        (["--label", "a", "--attributes", "b"], "not allowed with argument"),
        (["--label", "a", "--guidance", "-1"], "-1 is no number from 0 to 100"),
        (["--label", "a", "--guidance-interval", "1", "1000"], "1000 is no whole number"),
    ],
)
def test_what_is_asked_for_in_vain_is_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse_latent(["--show", "c", *flags])
    assert message in capsys.readouterr().err


def test_conditions_are_those_of_the_help(capsys):
    for text in ("none", "attributes", "folders", "some/Labels.CSV"):
        start = ["--train", "--encoder", "e", "--condition", text]
        assert parse_latent(start).condition == text
    with pytest.raises(SystemExit):
        parse_latent(["--train", "--encoder", "e", "--condition", "labels"])
    assert "labels is not none, attributes, folders or a .csv file" in capsys.readouterr().err
    assert parse_latent(["--show", "c", "--attributes=-Hat"]).attributes == "-Hat"
    assert parse_latent(["--show", "c", "--label", "a"]).num_images == 10


def test_samples_of_other_guidance_have_another_folder():
    start = ["--evaluate", "d.safetensors", "--guidance", "2"]
    assert parse_mnist(start).out == "fig/mnist/evaluation/d-ddpm50-guidance2"
    args = parse_mnist([*start, "--guidance-interval", "100", "700"])
    assert args.out == "fig/mnist/evaluation/d-ddpm50-guidance2-t100-t700"


# ---- Frozen -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parse", SCRIPTS)
def test_arguments_are_frozen(parse):
    args = parse(MODES[parse][TRAIN])
    before = dict(vars(args))
    for name in (*args.flags, "given", "flags", "new"):
        with pytest.raises(AttributeError, match=f"arguments are frozen: {name} cannot be set"):
            setattr(args, name, 1)
    assert vars(args) == before


def test_what_was_typed_goes_before_what_is_known():
    args = parse_mnist(["--train", "--data-root", "data"])  # the default, but typed
    assert args.typed("data_root", "elsewhere") == "data"
    assert args.typed("lr", 7) == 7
    assert args.given == {"train", "data_root"}


# ---- Defaults -----------------------------------------------------------------------------------


def test_default_size_suits_data_and_machine():
    assert default_size("celeba", on_gpu=True) == (208, 176)
    for data, on_gpu in (("celeba", False), ("synthetic", True), ("pictures", False)):
        assert default_size(data, on_gpu) == (64, 64)


def test_default_protocol_is_2000_samples_of_50_steps():
    args = parse_mnist(["--evaluate", "x/d_epoch0003.safetensors"])
    assert (args.num_images, args.sampling_steps) == (2000, 50)
    assert args.out == "fig/mnist/evaluation/d_epoch0003-ddpm50"
    args = parse_latent(["--evaluate", "d.safetensors", "--sampler", "dpm++"])
    assert args.out == "fig/denoiser/evaluation/d-dpm++20"


def test_pictures_and_figures_have_places_of_their_own():
    shown = [[], ["--film"], ["--neighbours"], ["--interpolate", "1", "2"]]
    made = [parse_mnist(["--show", "d", *flags]) for flags in shown]
    assert [(args.out, args.num_images) for args in made] == [
        ("fig/mnist/generated.png", 30), ("fig/mnist/film.png", 1),
        ("fig/mnist/neighbours.png", 8), ("fig/mnist/interpolate.png", 9),
    ]  # fmt: skip
    assert parse_latent(["--show", "d"]).out == "fig/denoiser/generated.png"


INPAINT = ["--inpaint", "i.png", "--mask", "m.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--inpaint", "i.png"], "--inpaint needs --mask, a picture that is white where"),
        (["--mask", "m.png"], "--mask goes with --inpaint"),
        (["--vary", "i.png", "--resampling", "3"], "--resampling goes with --inpaint"),
        ([*INPAINT, "--strength", "0.5"], "--strength goes with --vary"),
        ([*INPAINT, "--vary", "i.png"], "not allowed with argument"),
        ([*INPAINT, "--film"], "--film does not go with --inpaint"),
        ([*INPAINT, "--sampler", "dpm++"], "--inpaint does each step anew, but dpm++ builds on"),
        ([*INPAINT, "--out", "a.jpg"], "--inpaint makes a .png, but --out is a.jpg"),
        ([*INPAINT, "--num-images", "101"], "--inpaint shows at most 100 pictures"),
        ([*INPAINT, "--resampling", "0"], "0 is no whole number from 1 to 1,000"),
        (["--vary", "i.png", "--strength", "0"], "0 is no number above 0 to 1"),
        (["--vary", "i.png", "--strength", "0.5", "1.01"], "1.01 is no number above 0 to 1"),
        (["--vary", "i.png", "--strength", "nan"], "nan is no number above 0 to 1"),
        (["--reconstruct", "i.png", "--sampler", "ddim"], "--sampler does not go with --reconstr"),
        (["--invert", "i.png", "--sampler", "dpm++"], "--invert is of --sampler ddim, not of dpm"),
        (["--reconstruct", "i.png", "--label", "1"], "--label does not go with --reconstruct"),
        (["--invert", "i.png", "--seed", "1"], "--seed does not go with --invert"),
        (["--invert", "i.png", "--num-images", "3"], "--num-images does not go with --invert"),
        (["--invert", "i.png", "--sigma-scale", "0.9"], "but ddim adds none"),
        (["--invert", "a", "b", "c"], "--invert takes one picture, or two"),
    ],
)
def test_edits_that_cannot_be_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse_latent(["--show", "c.safetensors", *flags])
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_an_edit_has_steps_and_places_of_its_own():
    def parsed(*flags):
        args = parse_mnist(["--show", "c", *flags])
        return args.sampler, args.sampling_steps, args.num_images, editing.edit_of(args, "fig/d")

    own = {"inpaint": "i.png", "mask": "m.png", "resampling": 10}
    sheet = {"sheet": Path("fig/mnist/inpaint.png")}
    assert parsed(*INPAINT) == ("ddpm", 100, 4, sheet | own)
    sheet = {"sheet": Path("fig/d/inpaint.png")}  # beside a folder of results
    assert parsed(*INPAINT, "--sampler", "ddim", "--out", "a") == ("ddim", None, 4, sheet | own)
    vary = {"sheet": Path("b.PNG"), "vary": "i.png", "strength": [0.3, 0.5, 0.8]}
    assert parsed("--vary", "i.png", "--out", "b.PNG") == ("ddpm", None, 4, vary)
    invert = {"sheet": Path("fig/mnist/invert.png"), "invert": ["a", "b"]}
    assert parsed("--invert", "a", "b") == ("ddim", None, 9, invert)
    assert parsed() == ("ddpm", None, 30, {})


def test_runs_begun_in_the_same_second_have_their_own_names(monkeypatch):
    clock = SimpleNamespace(strftime=lambda form: "20261125-174310")
    monkeypatch.setattr(finish, "time", clock)
    monkeypatch.setattr(finish, "os", SimpleNamespace(getpid=iter([7, 8]).__next__))
    names = [parse_mnist(["--train"]).name for _ in range(2)]
    assert names == ["20261125-174310-7", "20261125-174310-8"]
    assert parse_mnist(["--train", "--resume"]).name is None
    assert os.getpid  # the module itself is untouched


# ---- Resuming -----------------------------------------------------------------------------------


def saved(args):
    """The settings as a state gives them back."""
    return json.loads(json.dumps(args.settings()))


@pytest.mark.parametrize(("parse", "start", "forgotten"), [
    (parse_mnist, ["--train"],
     {"train", "resume", "device", "compile", "time_limit", "show", "evaluate"}),
    (parse_encoder, [], {"resume", "device", "compile", "time_limit", "workers", "evaluate"}),
    (parse_latent, ["--train", "--encoder", "e"],
     {"train", "resume", "device", "compile", "time_limit", "workers", "show", "evaluate"}),
])  # fmt: skip
def test_a_state_keeps_all_of_a_training_but_the_machine_and_the_start(parse, start, forgotten):
    args = parse(start)
    of_training = {name for name, flag in args.flags.items() if TRAIN in flag.modes}
    kept = args.settings()
    assert set(kept) == of_training - forgotten
    assert of_training & forgotten == {
        name for name in of_training if args.flags[name].resuming is Resuming.FORGOTTEN
    }
    assert all(kept[name] == getattr(args, name) for name in kept)


@pytest.mark.parametrize(("parse", "name"), list(every_flag_of_training()))
def test_a_resumed_run_takes_what_is_movable_and_refuses_what_is_fixed(parse, name):
    own = [] if is_switch(parse, name) else typed(parse, name)
    run = parse([*MODES[parse][TRAIN], *own, *NEEDS.get((name, TRAIN), [])])
    state, resume = saved(run), [*MODES[parse][TRAIN][:1], "--resume", "n"]

    # What is not typed is the run's.
    untouched = parse(resume).resumed(state)
    assert untouched.settings() == run.settings() and untouched.mode == TRAIN

    # What is typed: the run's own value always, another one where it is not fixed.
    args = parse([*resume, *typed(parse, name, 1)])
    flag, value = args.flags[name], getattr(args, name)
    if flag.resuming is Resuming.FIXED:
        with pytest.raises(UserError, match=f"^{flag}: the run to resume has .*; leave it out$"):
            args.resumed(state)
        assert parse([*resume, *own]).resumed(state).settings() == run.settings()
        return
    resumed = args.resumed(state)
    assert getattr(resumed, name) == value != getattr(run, name)
    others = {k: v for k, v in resumed.settings().items() if k not in (name, "steps")}
    assert others == {k: v for k, v in run.settings().items() if k not in (name, "steps")}


HOSTILE = [None, True, -1, 0, 0.5, 10**400, "", "x", "../../x", "\x1b[2J", [], [8, 8], {}, [None]]


@pytest.mark.parametrize("parse", MODES)
def test_settings_of_a_state_are_checked_like_what_is_typed(parse):
    """Whatever a state says, each flag has a value that could have been typed; or one sentence."""
    state = saved(parse(MODES[parse][TRAIN]))
    args = parse([*MODES[parse][TRAIN][:1], "--resume", "n"])
    refused = 0
    for name, value in itertools.product(state, HOSTILE):
        try:
            resumed = args.resumed({**state, name: value})
        except UserError as error:
            assert str(error).startswith(str(args.flags[name])) and len(str(error)) < 300
            refused += 1
            continue
        flag, value = args.flags[name], getattr(resumed, name)
        if value is not flag.default and not isinstance(flag.default, bool):
            text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
            again = parse([*MODES[parse][TRAIN], f"{flag}={text}"])
            assert getattr(again, name) == value
    assert refused > 5 * len(state)
    with pytest.raises(UserError, match="--name: the run to resume has ../../../escaped"):
        args.resumed({**state, "name": "../../../escaped"})


def test_resuming_leaves_the_arguments_as_they_were():
    args = parse_mnist(["--train", "--resume", "--epochs", "40"])
    before = dict(vars(args))
    args.resumed({**saved(parse_mnist(["--train"])), "lr": 0.5})
    assert vars(args) == before


@pytest.mark.parametrize("kept", [{"steps": 8, "epochs": None}, {"steps": None, "epochs": 3},
                                  {"steps": 8, "epochs": 3}])  # fmt: skip
def test_more_epochs_prolong_any_run(kept):
    """README: --train --resume --epochs 40."""
    args = parse_mnist(["--train", "--resume", "--epochs", "40"]).resumed(kept)
    assert (args.steps, args.epochs) == (None, 40)
    args = parse_mnist(["--train", "--resume", "--steps", "9"]).resumed(kept)
    assert (args.steps, args.epochs) == (9, kept["epochs"])


def test_sizes_are_pairs_again():
    """JSON has lists only."""
    run = parse_encoder(["--size", "16x32"])
    args = parse_encoder(["--resume", "--size", "16x32"]).resumed(saved(run))
    assert args.size == (16, 32)


def test_latents_that_predict_eps_have_no_cosine_schedule(capsys):
    """There x0_hat of t = 999 would be 20,000 times as wrong as eps_hat, and nothing clips it."""
    train = ["--train", "--encoder", "a", "--prediction", "eps"]
    assert parse_latent(train).schedule == "linear"
    assert parse_latent([*train, "--schedule", "scaled_linear"]).schedule == "scaled_linear"
    with pytest.raises(SystemExit):
        parse_latent([*train, "--schedule", "cosine"])
    assert "--schedule cosine does not go with --prediction eps" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "3", "-1", "2,1", "1,1", "1;2", "1,", "0x1", "one"])
def test_levels_of_attention_are_those_of_the_network_in_order(text, capsys):
    for good in ("0", "2", "0,1", "0,1,2"):
        assert parse_mnist(["--train", "--attention", good]).attention == good
    with pytest.raises(SystemExit):
        parse_mnist(["--train", f"--attention={text}"])
    assert f"{text} is no list of levels from 0 to 2 in order" in capsys.readouterr().err


def test_a_size_that_no_checkpoint_may_have_is_refused_before_the_training(capsys):
    with pytest.raises(SystemExit):
        parse_encoder(["--size", "4096x4096"])
    assert "4096x4096 has more than 8,388,608 pixels" in capsys.readouterr().err
    assert parse_encoder(["--size", "2048x2048"]).size == (2048, 2048)


@pytest.mark.parametrize("parse", [parse_mnist, parse_encoder, parse_latent])
def test_the_version_is_said_and_is_that_of_the_release(parse, capsys):
    """By every script, in CHANGELOG.md and in CITATION.cff."""
    with pytest.raises(SystemExit) as end:
        parse(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"{NAME} {__version__}\n"
    assert f"\n## {__version__}, " in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
