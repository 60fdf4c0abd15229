"""Checkpoints and states: round trips to the bit, JSON inside, refusals in a sentence."""

import copy
import errno
import json
import os
import resource
import struct
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from fuzz import (
    EXAMPLES,
    HOSTILE,
    NO_JSON,
    assert_one_line,
    damaged_bytes,
    damaged_trees,
    header_of,
    put_header,
    some,
)
from helpers import randomize, scheduler, small_autoencoder, small_unet
from safetensors import safe_open
from safetensors.torch import save_file

from common.errors import DamagedError, UnreadableError, UserError
from common.version import NAME, __version__
from data.tensor_files import TensorFile, write_tensors
from generation.pipeline import load_denoiser
from models.autoencoder import AutoencoderConfig, AutoencoderKL
from models.classifier import Classifier, ClassifierConfig
from models.discriminator import DiscriminatorConfig, PatchDiscriminator
from models.unet import UNet, UNetConfig
from training import checkpoint
from training.checkpoint import (
    checkpoints_in,
    fingerprint,
    load_model,
    load_state,
    save_model,
    save_state,
)
from training.first_stage import encoder_id, find_autoencoder, goes_with

FACTS = {"size": [28, 28], "epoch": 3, "name": "süß"}


def test_model_round_trip(tmp_path):
    model = randomize(small_unet())
    save_model(tmp_path / "new" / "m.safetensors", model, FACTS)
    again, facts = load_model(tmp_path / "new" / "m.safetensors", "UNet")
    assert facts == FACTS and again.config == model.config and not again.training
    assert fingerprint(again) == fingerprint(model)
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([4])
    assert torch.equal(again(x, t), model(x, t))


def test_metadata_is_json_with_a_version(tmp_path):
    save_model(tmp_path / "m.safetensors", small_autoencoder(), FACTS)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and metadata["version"] == "1"
    assert metadata["written_by"] == f"{NAME} {__version__}"
    assert json.loads(metadata["facts"]) == FACTS
    assert json.loads(metadata["config"])["channels"] == [8, 16, 16]


def test_attention_is_said_only_where_it_is(tmp_path):
    """What has none is written as before, and what says nothing of it has none."""
    path = tmp_path / "m.safetensors"
    for model in (small_unet(), small_autoencoder()):
        save_model(path, model, {})
        assert "attention" not in header_of(path)[0]["__metadata__"]["config"]
    for model in NETWORKS[1], NETWORKS[3]:
        save_model(path, model, {})
        again = load_model(path, type(model).__name__)[0]
        assert again.config == model.config and fingerprint(again) == fingerprint(model)


@pytest.mark.parametrize(("network", "config", "text"), [
    (0, {"attention_levels": [2]}, "down_blocks.2.attentions.0.group_norm.weight"),
    (0, {"attention_levels": [3]}, "attention is at levels from 0 to 2"),
    (0, {"attention_levels": [0, 0]}, "attention is at levels from 0 to 2"),
    (0, {"attention": True}, "unexpected keyword argument 'attention'"),
    (1, {"channels": [7, 16], "groups": 1}, "attention needs widths that are multiples of 7"),
    (1, {"attention_levels": [1]}, "Unexpected key"),
    (2, {"attention": True}, "encoder.mid_block.attentions.0.group_norm.weight"),
    (3, {"attention": False}, "Unexpected key"),
])  # fmt: skip
def test_attention_that_the_tensors_have_not_is_refused(tmp_path, network, config, text):
    path, model = tmp_path / "m.safetensors", NETWORKS[network]
    save_model(path, model, {})
    rewrite(path, config={**json.loads(header_of(path)[0]["__metadata__"]["config"]), **config})
    with pytest.raises(UserError, match=text) as caught:
        load_model(path, type(model).__name__)
    assert_one_line(caught.value, path)


def test_fingerprint_sees_every_bit_and_name():
    model = randomize(small_autoencoder())
    before = fingerprint(model)
    assert fingerprint(randomize(small_autoencoder())) == before
    with torch.no_grad():
        model.quant_conv.bias[0] = torch.nextafter(model.quant_conv.bias[0], torch.tensor(9.0))
    assert fingerprint(model) != before


def test_autoencoder_is_found_by_its_encoder(tmp_path):
    models = [randomize(small_autoencoder(), seed) for seed in range(3)]
    for i, model in enumerate(models):
        save_model(tmp_path / f"{i}.safetensors", model, {})
        os.utime(tmp_path / f"{i}.safetensors", (i, i))
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    wanted = encoder_id(models[1])
    assert find_autoencoder(tmp_path, wanted) == tmp_path / "1.safetensors"
    assert find_autoencoder(tmp_path, "0" * 64) is None
    assert find_autoencoder(tmp_path / "missing", "0" * 64) is None

    # The decoder may be another, and the id of all of it is that of earlier versions.
    further = copy.deepcopy(models[1])
    with torch.no_grad():
        further.decoder.conv_out.bias.add_(1)
    save_model(tmp_path / "further.safetensors", further, {})
    assert find_autoencoder(tmp_path, wanted) == tmp_path / "further.safetensors"
    assert find_autoencoder(tmp_path, fingerprint(models[1])) == tmp_path / "1.safetensors"
    with torch.no_grad():
        further.quant_conv.bias.add_(1)
    assert not goes_with(further, wanted)


def test_state_round_trip(tmp_path):
    model = small_unet()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.5, 0.9))
    model(torch.randn(1, 1, 4, 4), torch.tensor([0])).sum().backward()
    optimizer.step()
    tree = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": {"cpu": torch.get_rng_state()},
        "settings": {"steps": None, "lr": 1e-3, "size": [4, 4], "flip": False, "name": "a/b"},
        "empty": {},
        "step": 7,
    }
    save_state(tmp_path / "run.state", tree)
    again = load_state(tmp_path / "run.state")
    assert again["settings"] == tree["settings"] and again["step"] == 7 and again["empty"] == {}
    assert again["settings"]["flip"] is False  # not bool("False")
    for name, tensor in tree["model"].items():
        assert torch.equal(again["model"][name], tensor)
    assert torch.equal(again["random"]["cpu"], tree["random"]["cpu"])
    other = torch.optim.AdamW(model.parameters())
    other.load_state_dict(again["optimizer"])
    assert other.param_groups[0]["betas"] in ((0.5, 0.9), [0.5, 0.9])
    for ours, theirs in zip(other.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(ours[k], theirs[k]) for k in ("step", "exp_avg", "exp_avg_sq"))


def test_missing_file_names_what_is_there(tmp_path):
    save_model(tmp_path / "there.safetensors", small_unet(), {})
    with pytest.raises(ValueError, match=r"no checkpoint .*absent.*; there are .*there"):
        load_model(tmp_path / "absent.safetensors", "UNet")
    with pytest.raises(ValueError, match=r"no checkpoint .*; there are .*there.safetensors$"):
        load_model(tmp_path, "UNet")
    save_state(tmp_path / "run.state", {"step": 1})
    with pytest.raises(ValueError, match=r"no training state .*absent; there are .*run.state$"):
        load_state(tmp_path / "absent")


def test_a_link_to_nowhere_is_no_checkpoint(tmp_path):
    save_model(tmp_path / "there.safetensors", small_unet(), {})
    try:
        (tmp_path / "moved.safetensors").symlink_to(tmp_path / "nowhere")
    except OSError:
        pytest.skip("no links here")
    assert [p.stem for p in checkpoints_in(tmp_path)] == ["there"]


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_files_are_refused(tmp_path, kept):
    path = tmp_path / "m.safetensors"
    save_model(path, small_unet(), {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="truncated or no safetensors"):
        load_model(path, "UNet")


def test_other_kinds_are_refused(tmp_path):
    save_model(tmp_path / "m.safetensors", small_autoencoder(), {})
    with pytest.raises(ValueError, match="holds a AutoencoderKL, but a UNet is needed"):
        load_model(tmp_path / "m.safetensors", "UNet")
    save_state(tmp_path / "run.state", {"step": 1, "tensor": torch.zeros(1)})
    with pytest.raises(ValueError, match="it holds no averaged weights"):
        load_model(tmp_path / "run.state", "UNet")
    with pytest.raises(ValueError, match="not the state of a training run"):
        load_state(tmp_path / "m.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="not written by this project"):
        load_model(tmp_path / "foreign.safetensors", "UNet")


def test_other_versions_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, small_unet(), {})
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + length].replace(b'"version":"1"', b'"version":"9"')
    path.write_bytes(content[:8] + header + content[8 + length :])
    with pytest.raises(ValueError, match="version 9 of the format, this code reads 1"):
        load_model(path, "UNet")


def test_newest_comes_first(tmp_path):
    for i, name in enumerate(["b", "c", "a"]):
        save_model(tmp_path / f"{name}.safetensors", small_unet(), {})
        os.utime(tmp_path / f"{name}.safetensors", (1000 + i, 1000 + i))
    assert [p.stem for p in checkpoints_in(tmp_path)] == ["a", "c", "b"]


# ---- Damaged and hostile files ------------------------------------------------------------------

DENOISER = {
    "space": "latents", "data": "celeba", "data_root": "data", "size": [32, 64],
    "shape": [3, 8, 16], "scheduler": vars(scheduler().config), "cache": "0123456789abcdef",
    "latent_stats": {"mean": [0.1, -2, 3e-7], "std": [1.0, 2, 3.5e-5]}, "autoencoder_id": "7" * 64,
}  # fmt: skip
RUN = {
    "folder": "checkpoints/kind", "step": 4, "begun_as": 9, "fall_start": 7,
    "settings": {"name": "a", "steps": 9, "lr": 1e-3}, "ids": {"data": "x: 1"}, "configs": {},
    "random": {"cpu": torch.get_rng_state()}, "model": {"w": torch.ones(3), "list": [1, None]},
}  # fmt: skip
NETWORKS = [
    small_unet(),
    UNet(UNetConfig(1, (8, 16), 1, 8, 0.0, (0, 1))),
    small_autoencoder(),
    AutoencoderKL(AutoencoderConfig(1, 2, (8, 16), 1, 8, attention=True)),
    PatchDiscriminator(DiscriminatorConfig(3, 8, 2)),
    Classifier(ClassifierConfig(1, (8, 8), 6, 10)),
]


def rewrite(path, **metadata):
    """Other metadata, a tree or bytes each, with digests that are right: by whoever knows how."""
    file = TensorFile(path)
    texts = {k: v.decode("latin1") if isinstance(v, bytes) else json.dumps(v)
             for k, v in metadata.items()}  # fmt: skip
    kept = {k: file.metadata[k] for k in ("format", "version", "config", "facts")}
    write_tensors(path, file.read(), {**kept, **texts})
    file.close()


def make_old(path):
    """As earlier versions wrote it, without digests."""
    header, rest = header_of(path)
    for key in ("fingerprint", "digest"):
        del header["__metadata__"][key]
    put_header(path, header, rest)


@pytest.fixture
def denoiser(tmp_path):
    path = tmp_path / "d.safetensors"
    save_model(path, randomize(small_unet(3)), DENOISER)
    return path


@pytest.fixture
def state(tmp_path):
    save_state(tmp_path / "run.state", RUN)
    return tmp_path / "run.state"


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    return one == other


def contents(path):
    """What a user gets of a file."""
    if path.suffix == ".state":
        return load_state(path)
    model, known, facts = load_denoiser(path, "latents")
    return {**model.state_dict(), "config": model.config, "known": known.config, "facts": facts}


@pytest.mark.parametrize("kind", ["denoiser", "state"])
def test_any_damage_is_noticed(kind, request):
    path = request.getfixturevalue(kind)
    expected, content = contents(path), path.read_bytes()
    for seed in range(2 * EXAMPLES):
        path.write_bytes(damaged_bytes(content, seed))
        try:
            assert equal(contents(path), expected), seed
        except UserError as error:
            assert_one_line(error, path)


@pytest.mark.parametrize("kind", ["denoiser", "state"])
def test_changed_metadata_are_damage(kind, request):
    """Said of the file, not of what they would mean."""
    path = request.getfixturevalue(kind)
    path.write_bytes(path.read_bytes().replace(b"kind", b"kine", 1))
    with pytest.raises(DamagedError, match="its metadata are not as written"):
        contents(path)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("key", ["config", "facts"])
@pytest.mark.parametrize("kind", ["denoiser", "state"])
def test_metadata_may_say_anything(kind, key, old, request):
    path = request.getfixturevalue(kind)
    tree = json.loads(header_of(path)[0]["__metadata__"][key])
    for found in some([*damaged_trees(tree), *HOSTILE, *NO_JSON]):
        rewrite(path, **{key: found})
        if old:
            make_old(path)
        try:
            contents(path)
        except UserError as error:
            assert_one_line(error, path)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
def test_configs_may_say_anything(tmp_path, network):
    """What is loaded is what was saved."""
    path, kind = tmp_path / "m.safetensors", type(network).__name__
    save_model(path, network, {})
    tree = json.loads(header_of(path)[0]["__metadata__"]["config"])
    for found in some(damaged_trees(tree)):
        rewrite(path, config=found)
        try:
            model = load_model(path, kind)[0]
            assert equal(model.state_dict(), network.state_dict())
        except UserError as error:
            assert_one_line(error, path)


@pytest.mark.parametrize(
    "config",
    [{"blocks": 10**9}, {"blocks": 60_000}, {"channels": [8192] * 3}, {"channels": [8] * 10**5},
     {"channels": [8] * 30, "blocks": 60_000}, {"groups": 10**9}, {"latent_channels": 65_536}],
    ids=lambda config: str(config)[:40],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_it_is_built(tmp_path, config):
    path = tmp_path / "m.safetensors"
    save_model(path, small_autoencoder(), {})
    rewrite(path, config={**json.loads(header_of(path)[0]["__metadata__"]["config"]), **config})
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UserError, match="does not fit this version of the code: ") as caught:
        load_model(path, "AutoencoderKL")
    assert time.monotonic() - began < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB
    assert_one_line(caught.value, path)


def save_tensors(path, tensors):
    config = {"kind": "UNet", **vars(small_unet().config)}
    metadata = {"version": "1", "config": json.dumps(config), "facts": "{}"}
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.update({"conv_in.bias": torch.zeros(9)}), "size mismatch for conv_in.bias"),
        (lambda t: t.pop("conv_in.bias"), r'Missing key\(s\) in state_dict: "conv_in.bias"'),
        (lambda t: t.update({"y" * 10**6: torch.zeros(1)}), r"Unexpected key\(s\).*yyy"),
        (lambda t: t["conv_in.bias"].fill_(torch.nan), "conv_in.bias is not finite"),
        (lambda t: t.clear(), "of more blocks than 0 tensors can be"),
    ],
)
def test_other_tensors_are_told_by_name(tmp_path, change, text):
    path, tensors = tmp_path / "m.safetensors", dict(small_unet().state_dict())
    save_tensors(path, tensors)
    assert equal(load_model(path, "UNet")[0].state_dict(), tensors)  # an earlier version's
    change(tensors)
    save_tensors(path, tensors)
    with pytest.raises(UserError, match=text) as caught:
        load_model(path, "UNet")
    assert_one_line(caught.value, path)


def test_reading_draws_no_more_random_numbers_than_it_did(tmp_path):
    """Those of one network on the CPU: so seeded runs stay the same to the bit."""
    save_model(tmp_path / "m.safetensors", small_unet(), {})
    torch.manual_seed(0)
    load_model(tmp_path / "m.safetensors", "UNet")
    after = torch.get_rng_state()
    torch.manual_seed(0)
    small_unet()
    assert torch.equal(torch.get_rng_state(), after)


def test_needed_facts_are_asked_for(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, small_autoencoder(), {"data": "x", "size": [0, 1]})
    load_model(path, "AutoencoderKL")
    with pytest.raises(UserError, match=r"m.safetensors is damaged \(its size is \[0, 1\]\)"):
        load_model(path, "AutoencoderKL", ("data", "size"))
    save_model(path, small_autoencoder(), {"data": "x"})
    with pytest.raises(UserError, match="does not say its size"):
        load_model(path, "AutoencoderKL", ("data", "size"))


@pytest.mark.parametrize("kind", ["denoiser", "state"])
def test_files_of_earlier_versions_are_read(kind, request):
    path = request.getfixturevalue(kind)
    expected = contents(path)
    make_old(path)
    assert equal(contents(path), expected)


def test_bad_neighbours_hide_no_encoder(tmp_path, monkeypatch):
    """Nor does one of them cost more than its header, as long as its writer knew of digests."""
    model = randomize(small_autoencoder())
    save_model(tmp_path / "0.safetensors", model, {})
    save_model(tmp_path / "1.safetensors", small_unet(), {})
    save_tensors(tmp_path / "2.safetensors", {"x": torch.zeros(1)})
    (tmp_path / "3.safetensors").write_bytes(b"[" * 10**6)
    os.mkfifo(tmp_path / "4.safetensors")
    (tmp_path / "5.safetensors").mkdir()
    save_model(tmp_path / "6.safetensors", small_autoencoder(), {})
    rewrite(tmp_path / "6.safetensors", config={"kind": "AutoencoderKL"})
    for i in range(7):
        os.utime(tmp_path / f"{i}.safetensors", (i, i))
    assert find_autoencoder(tmp_path, encoder_id(model)) == tmp_path / "0.safetensors"
    make_old(tmp_path / "0.safetensors")
    assert find_autoencoder(tmp_path, encoder_id(model)) == tmp_path / "0.safetensors"


def test_what_may_not_be_read_is_told(tmp_path, monkeypatch):
    """Neither absent nor damaged."""
    model = small_autoencoder()
    save_model(tmp_path / "a.safetensors", model, {})
    save_model(tmp_path / "b.safetensors", model, {})
    save_state(tmp_path / "a.state", {"step": 1})

    def closed(path, *rest, really=os.open):
        if Path(path).stem == "a":
            raise PermissionError(errno.EACCES, "Permission denied")
        return really(path, *rest)

    monkeypatch.setattr(os, "open", closed)
    for use in (
        lambda: load_model(tmp_path / "a.safetensors", "AutoencoderKL"),
        lambda: load_state(tmp_path / "a.state"),
    ):
        with pytest.raises(UnreadableError, match=r"a.s\w+ may not be read"):
            use()
    assert find_autoencoder(tmp_path, encoder_id(model)) == tmp_path / "b.safetensors"

    def shut(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint.os, "scandir", shut)
    with pytest.raises(UnreadableError, match=f"{tmp_path} may not be read"):
        checkpoints_in(tmp_path)


def test_foreign_values_are_quoted_in_part(tmp_path):
    path = tmp_path / "m.safetensors"
    for kind in ("x" * 10**6, "\x1b[2J\n" * 50, [[[[1] * 999] * 99] * 9], {"a": "b" * 999}):
        save_model(path, small_autoencoder(), {})
        rewrite(path, config={"kind": kind})
        with pytest.raises(UserError, match="holds a ") as caught:
            load_model(path, "AutoencoderKL")
        assert_one_line(caught.value, path)
    save_file({"x": torch.zeros(1)}, path, {"version": "\x1b" * 999, "config": "", "facts": ""})
    with pytest.raises(UserError, match="has version ") as caught:
        load_model(path, "AutoencoderKL")
    assert_one_line(caught.value, path)


def test_nothing_is_left_of_a_failing_write(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*m.safetensors"):
        save_model(tmp_path / "m.safetensors", small_autoencoder(), {})
    assert not list(tmp_path.iterdir())


def test_a_state_is_shown_by_its_averaged_weights(tmp_path):
    ema = randomize(small_unet(), seed=3)
    config = {"kind": "UNet", **json.loads(json.dumps(asdict(ema.config)))}
    tree = {"ema": ema.state_dict(), "model": randomize(small_unet()).state_dict()}
    tree |= {"configs": {"ema": config}, "facts": {"space": "pixels", "step": 7}}
    save_state(tmp_path / "a.state", tree)
    model, facts = load_model(tmp_path / "a.state", "UNet")
    assert facts == tree["facts"]
    for key, value in ema.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    with pytest.raises(UserError, match="a.state holds a UNet, but a AutoencoderKL is needed"):
        load_model(tmp_path / "a.state", "AutoencoderKL")
    for key in ("configs", "facts", "ema"):
        save_state(tmp_path / "b.state", {k: v for k, v in tree.items() if k != key})
        with pytest.raises(UserError, match=r"b\.state (is damaged|does not fit)"):
            load_model(tmp_path / "b.state", "UNet")


@pytest.mark.parametrize("dropout", [0.0, 0.1, 1e-5, 2.5e-7, 0.999999])
def test_every_dropout_that_can_be_typed_can_be_read(tmp_path, dropout):
    """JSON writes small ones with an exponent."""
    network = UNet(UNetConfig(1, (8, 8), 1, 8, dropout))
    save_model(tmp_path / "m.safetensors", network, {})
    assert load_model(tmp_path / "m.safetensors", "UNet")[0].config.dropout == dropout


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
def test_half_precision_is_read_as_float32(network, tmp_path):
    path, model = tmp_path / "m.safetensors", network
    save_model(path, model, {"a": 1}, torch.float16)
    again, facts = load_model(path, type(model).__name__)
    assert facts == {"a": 1}
    for name, tensor in model.state_dict().items():
        rounded = tensor.half().float() if tensor.is_floating_point() else tensor
        assert again.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(again.state_dict()[name], rounded)
    full = tmp_path / "full.safetensors"
    save_model(full, model, {"a": 1})
    assert path.stat().st_size < 0.8 * full.stat().st_size
