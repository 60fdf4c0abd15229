"""Several processes train as one: the numbers of one, one voice, one end.

Processes are forked where torch is loaded already; what concerns torchrun itself is started by it.
"""

import contextlib
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from helpers import (
    ROOT,
    randomize,
    run_digits,
    run_encoder,
    run_latent,
    run_script,
    small_perceptual,
    tree,
    write_images,
    write_mnist,
)
from tqdm import tqdm

from common import launch
from common.errors import PeerLostError, UserError
from common.launch import Launch, is_first, launched
from common.machine import cores, share_cores
from data import images
from data.order import ShuffledOrder
from models.classifier import Classifier, ClassifierConfig
from models.draws import Draws, Purpose
from training import distributed, pretrained
from training.checkpoint import load_state, save_model
from training.records import read_metrics
from training.run import Run

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def as_rank(rank, size, port, function, arguments, to):
    """In a forked process: function(*arguments) as one of `size`, what it returns to the pipe."""
    torch.set_num_threads(1)  # the pool of a fork's parent is not there
    images._threads = ThreadPoolExecutor(1)  # nor are its threads that decode
    tqdm.set_lock(threading.RLock())  # forks share the parent's, which would die with one of them
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    try:
        distributed.start("cpu")
        result = function(*arguments)
    except BaseException as error:
        traceback.print_exc()
        result = error
    with contextlib.suppress(OSError):
        to.send(result)
    to.close()
    os._exit(0)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(size, function, *arguments, seconds=100):
    """[function(*arguments) of each of `size` processes], errors among them."""
    context, port = get_context("fork"), free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = [
        context.Process(target=as_rank, args=(rank, size, port, function, arguments, to))
        for rank, (_, to) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    results = []
    try:
        for (of, to), process in zip(pipes, processes, strict=True):
            to.close()
            try:
                results.append(of.recv() if of.poll(seconds) else TimeoutError(process.name))
            except EOFError as error:  # it ended without a word
                results.append(error)
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return results


def trained(size, run, *flags, name):
    """Train as so many processes; the state and the records of the run."""
    for result in together(size, run, *flags, "--name", name):
        assert result is None, result
    kind = {run_digits: "mnist", run_encoder: "autoencoder", run_latent: "denoiser"}[run]
    records = read_metrics(Path("fig", kind, name, "metrics.jsonl"), name)
    return load_state(f"checkpoints/{kind}/{name}.state"), records


def assert_alike(one, other, rounding=1e-3):
    """States and records that differ by rounding. Adam divides small gradients by their size, so
    some weights differ by more than others."""
    (state, records), (state2, records2) = one, other
    # The discriminator's gradients are small, and so is what rounding leaves of some weights.
    if "disc" in state:
        value, other = (
            torch.cat([v.flatten() for v in s["disc"].values()]) for s in (state, state2)
        )
        assert (value - other).norm() / value.norm() < 4 * rounding
    for network in [k for k in ("model", "ema") if k in state]:
        assert state[network].keys() == state2[network].keys()
        for key, value in state[network].items():
            far = (value - state2[network][key]).norm() / (value.norm() + 1e-3)
            assert far < rounding, (network, key, far)
    assert len(records) == len(records2) > 0
    for record, record2 in zip(records, records2, strict=True):
        assert record.keys() == record2.keys()
        for key in record.keys() - {"run", "images_per_second"}:
            a, b = record[key], record2[key]
            for x, y in zip(*[v if isinstance(v, list) else [v] for v in (a, b)], strict=True):
                assert x == y or math.isclose(x, y, rel_tol=rounding, abs_tol=1e-5), (key, a, b)


@pytest.fixture(autouse=True)
def alone(monkeypatch, no_figures):
    """Whatever started the tests."""
    for name in launch.NEEDED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def digits_root(tmp_path):
    return write_mnist(tmp_path / "data", train=64, test=40)


# ---- As many processes, the same training -------------------------------------------------------

DIGITS = "--steps", 20, "--batch", 8, "--channels", 8, "--blocks", 1, "--save-every", 20
FACES = ("--data", "synthetic", "--size", "16x16", "--steps", 20, "--batch", 8, "--channels", 8,
         "--blocks", 1)  # fmt: skip


@needs_fork
def test_digits_are_learnt_alike_by_one_two_and_four(folder, digits_root):
    flags = (*DIGITS, "--data-root", digits_root)
    one = trained(1, run_digits, *flags, name="one")
    for name, size, parts in (("two", 2, 2), ("four", 4, 1), ("parts", 1, 4)):
        assert_alike(one, trained(size, run_digits, *flags, "--accumulate", parts, name=name))


@needs_fork
def test_autoencoders_are_learnt_alike_by_one_two_and_four(folder):
    """With the GAN, whose weight is of the whole batch, by Muon, through all of its phases."""
    flags = (*FACES, "--lr", 2e-4)  # at a higher rate the GAN multiplies what rounding changes
    one = trained(1, run_encoder, *flags, name="one")
    assert one[1][-1]["gan_weight"] > 0 and one[1][-1]["adaptive_weight"] > 0
    for name, size, parts in (("two", 2, 2), ("four", 4, 1), ("parts", 1, 2)):
        other = trained(size, run_encoder, *flags, "--accumulate", parts, name=name)
        assert_alike(one, other, rounding=5e-3)


@needs_fork
def test_a_perceptual_loss_is_learnt_alike_by_one_and_two(folder, monkeypatch):
    """In parts, too; all take the network that the first one finds."""
    monkeypatch.setattr("train_encoder.load_perceptual", lambda _: (small_perceptual(), "vgg16"))
    flags = (*FACES, "--perceptual-weight", 0.1, "--gan-weight", 0)
    one = trained(1, run_encoder, *flags, name="one")
    assert one[1][-1]["loss_perceptual"] > 0
    two = trained(2, run_encoder, *flags, "--accumulate", 2, name="two")
    assert_alike(one, two, rounding=1.5e-3)
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "_here", lambda name: name == "squeezenet" or not is_first())
        patch.setattr(pretrained, "efficientnet_path", lambda: None)
        patch.setattr(torch.hub, "get_dir", lambda: "nowhere")
        patch.setattr(torch.hub, "download_url_to_file", lambda *_, **more: 1 / 0)
        found = together(2, pretrained.load_perceptual, "auto")
    assert all("squeezenet1_1" in str(error) for error in found)


@needs_fork
def test_unreadable_images_count_in_no_process(folder):
    """A share of a batch may have none that can be read; the batch has its mean of all others."""
    write_images(folder / "pictures", 12, size=(16, 16))
    for name in ("01.png", "05.png", "06.png", "09.png"):  # their headers can be read
        whole = (folder / "pictures" / name).read_bytes()
        (folder / "pictures" / name).write_bytes(whole[: len(whole) // 2])
    flags = ("--data", "pictures", "--size", "16x16", "--steps", 12, "--batch", 2, "--channels", 8,
             "--blocks", 1, "--gan-weight", 0)  # fmt: skip
    one = trained(1, run_encoder, *flags, name="one")
    assert_alike(one, trained(2, run_encoder, *flags, name="two"), rounding=1.5e-3)


@needs_fork
def test_latents_are_cached_and_learnt_alike_by_one_two_and_four(folder, monkeypatch):
    monkeypatch.setattr("data.caching.SHARD", 7)
    monkeypatch.setattr("data.images.NUM_SYNTHETIC", 60)
    trained(1, run_encoder, *FACES, "--gan-weight", 0, name="ae")
    flags = ("--encoder", "checkpoints/autoencoder/ae_epoch0003.safetensors", "--mirror",
             "--steps", 20, "--batch", 8, "--channels", 8, "--blocks", 1)  # fmt: skip
    one = trained(1, run_latent, *flags, name="one")
    cache = tree(Path("encoded_img"))
    assert len(cache) > 15
    for name, size in (("two", 2), ("four", 4)):
        for path in Path("encoded_img").rglob("*.*"):
            path.unlink()
        assert_alike(one, trained(size, run_latent, *flags, name=name))
        assert tree(Path("encoded_img")) == cache  # to the byte

    # What one of several made before it was stopped is not made again.
    (kept,) = Path("encoded_img").rglob("train-00003.safetensors")
    written = kept.stat().st_mtime_ns
    for path in Path("encoded_img").rglob("*.*"):
        if path != kept:
            path.unlink()
    trained(2, run_latent, *flags, name="again")
    assert tree(Path("encoded_img")) == cache and kept.stat().st_mtime_ns == written


@needs_fork
def test_pictures_are_those_of_one_process(folder, digits_root):
    trained(1, run_digits, *DIGITS, "--data-root", digits_root, name="one")
    (path,) = Path("checkpoints/mnist").glob("*.safetensors")

    def show(out, *flags):
        flags = ("--show", path, "--out", out, "--num-images", 7, "--batch", 2, *flags)
        run_script("mnist_diffusion.py", *flags, "--sampler", "dpm++", "--sampling-steps", 2,
                   "--device", "cpu", "--precision", "fp32", cwd=folder)  # fmt: skip

    for size in (1, 2, 3):
        for out in ("folder", "grid.png", "strip.png"):
            kind = ("--interpolate", 0, 1) if out == "strip.png" else ()
            assert together(size, show, f"{size}/{out}", *kind) == [None] * size
    assert len(tree(Path("1"))) == 9 and tree(Path("1")) == tree(Path("2")) == tree(Path("3"))


@needs_fork
def test_an_evaluation_has_one_result(folder, digits_root):
    trained(1, run_digits, *DIGITS, "--data-root", digits_root, name="one")
    (path,) = Path("checkpoints/mnist").glob("*.safetensors")

    def evaluate(out):
        run_script("mnist_diffusion.py", "--evaluate", path, "--out", out, "--num-images", 20,
                   "--batch", 4, "--sampling-steps", 2, "--data-root", digits_root,
                   "--device", "cpu", "--precision", "fp32", cwd=folder)  # fmt: skip

    config = ClassifierConfig(1, (8, 8), 6, 10)
    save_model("checkpoints/classifier/mnist.safetensors", randomize(Classifier(config)), {})
    records = []
    for size in (1, 2):
        assert together(size, evaluate, f"of{size}") == [None] * size
        lines = Path(f"of{size}", "evaluation.jsonl").read_text().splitlines()
        assert len(lines) == 1
        records.append(json.loads(lines[0]))
    assert records[0] == records[1]


# ---- What they agree on -------------------------------------------------------------------------


def collectives():
    rank = launched().rank
    tensors = [torch.full((2, 3), float(rank)), torch.tensor(rank + 1.0)]
    ordered = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5) * (rank + 1)
    tensors += [ordered.to(memory_format=torch.channels_last), ordered]
    distributed.average(tensors)
    assert torch.equal(*tensors[2:])
    del tensors[3]
    return (
        [t.tolist() for t in tensors], distributed.total(rank + 0.5), distributed.most(-rank),
        distributed.everyones({rank}), distributed.firsts(f"of {rank}"), distributed.count(),
    )  # fmt: skip


@needs_fork
def test_all_processes_have_the_same_answers():
    numbers = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    mean = [[[1.0] * 3] * 2, 2.0, (2 * numbers).tolist()]
    expected = mean, 4.5, 0.0, [{0}, {1}, {2}], "of 0", 3
    assert together(3, collectives) == [expected] * 3
    assert collectives() == ([[[0.0] * 3] * 2, 1.0, numbers.tolist()], 0.5, 0, [{0}], "of 0", 1)


def test_a_thousand_processes_see_each_image_once(monkeypatch):
    """Of 10^9 images: the shares of a batch, and their noise, are those of one process."""
    size, order = 1000, ShuffledOrder(10**9, 2000, seed=1)
    whole = order.indices(123_456)
    for rank in (0, 1, 500, 999):
        set_launch(monkeypatch, rank, size)
        places = distributed.share(order.batch)
        assert len(places) == 2
        assert torch.equal(order.indices(123_456, places), whole[places.start : places.stop])
        noise = Draws(1, 5, places).normal(Purpose.NOISE, (3,))
        of_all = Draws(1, 5, range(2000)).normal(Purpose.NOISE, (3,))
        assert torch.equal(noise, of_all[places.start : places.stop])
    shares = []
    shards = []
    for rank in range(size):
        set_launch(monkeypatch, rank, size)
        shares.append(distributed.share(2000))
        shards += distributed.mine(range(12_345))
    assert all(a.stop == b.start for a, b in pairwise(shares))
    assert (shares[0].start, shares[-1].stop) == (0, 2000)
    assert sorted(shards) == list(range(12_345))


@pytest.mark.parametrize(("batch", "size", "parts", "nearest"), [
    (10, 4, 1, "8 or 12"), (3, 4, 1, "4"), (256, 3, 1, "255 or 258"), (8, 2, 3, "6 or 12"),
    (7, 1, 2, "6 or 8"),
])  # fmt: skip
def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch, batch, size, parts, nearest):
    set_launch(monkeypatch, 0, size)
    with pytest.raises(UserError, match=rf"cannot be divided .*; pass {nearest}$"):
        distributed.check_batch(batch, parts)
    for good in re.findall(r"\d+", nearest):
        distributed.check_batch(int(good), parts)


def set_launch(monkeypatch, rank, size, **others):
    values = {
        "RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "localhost", "MASTER_PORT": 1, **others,
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_what_torchrun_says_is_read(monkeypatch):
    assert launched() == Launch() and str(launched()) == ""
    set_launch(monkeypatch, 3, 8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2)
    assert launched() == Launch(3, 8, 1, 2) and str(launched()) == "rank 3: "
    for name, wrong in (("RANK", "x"), ("RANK", ""), ("MASTER_PORT", ""), ("MASTER_ADDR", "")):
        with monkeypatch.context() as patch:
            patch.setenv(name, wrong)
            with pytest.raises(UserError, match="start several processes with torchrun"):
                launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched() == Launch()


def test_cores_are_divided_among_the_processes_of_a_machine(monkeypatch):
    there = cores()
    set_launch(monkeypatch, 1, 4, LOCAL_WORLD_SIZE=2)
    assert cores() == max(1, there // 2)
    for set_to, becomes in (("1", str(cores())), ("3", "3")):
        monkeypatch.setenv("OMP_NUM_THREADS", set_to)
        share_cores()
        assert os.environ["OMP_NUM_THREADS"] == becomes
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the user's own
    share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "1"


# ---- How they end -------------------------------------------------------------------------------


def lose_a_peer():
    if launched().rank == 1:
        os._exit(9)
    distributed.total(1)


@needs_fork
def test_a_process_that_is_gone_is_missed_at_once():
    began = time.monotonic()
    results = together(3, lose_a_peer)
    assert [type(result) for result in results] == [PeerLostError, EOFError, PeerLostError]
    assert time.monotonic() - began < 20


def differ():
    distributed.check_alike(steps=10, machine="a")
    distributed.check_alike(steps=launched().rank // 2)


@needs_fork
def test_processes_that_differ_do_not_begin():
    for result in together(3, differ):
        assert str(result) == "the processes differ in their steps: 0, 1; make them alike"


def stopped_while_saving(flags):
    save = Run._save_and_draw

    def then_stopped(run, done, draw):
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        save(run, done, draw)

    Run._save_and_draw = then_stopped
    run_digits(*flags)


@needs_fork
@pytest.mark.parametrize("size", [1, 2])
def test_a_signal_while_the_first_process_saves_ends_all_after_the_next_step(
    folder, digits_root, size
):
    flags = (*DIGITS, "--data-root", digits_root, "--name", "a")
    ends = together(size, stopped_while_saving, flags)
    assert [(type(end), end.code) for end in ends] == [(SystemExit, 143)] * size
    assert trained_steps("checkpoints/mnist/a.state") == (3 if size == 1 else 4)


@needs_fork
def test_a_signal_while_they_agree_is_not_lost(folder, digits_root, monkeypatch):
    agree, calls = distributed.most, itertools.count(1)

    def disturbed(value):
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return agree(value)

    monkeypatch.setattr(distributed, "most", disturbed)
    (end,) = together(1, run_digits, *DIGITS, "--data-root", digits_root, "--name", "a")
    assert isinstance(end, SystemExit) and end.code == 143


def torchrun(script, *flags, processes=2, cwd):
    """Start a script by torchrun; its process, with everything that is said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc_per_node={processes}", str(ROOT / script), *map(str, flags),
               "--device", "cpu", "--precision", "fp32"]  # fmt: skip
    return subprocess.Popen(command, cwd=cwd, env=environment, stderr=subprocess.STDOUT,
                            stdout=subprocess.PIPE, text=True, errors="replace")  # fmt: skip


def own_lines(output, script):
    """What the script itself has said of an error."""
    return [line for line in output.splitlines() if line.startswith(f"{script}: ")]


def children(of):
    """Process numbers of those that a process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) == of:
                found.append(int(status.parent.name))
    return sorted(found)


def rank_of(process):
    environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return int(dict(e.split(b"=", 1) for e in environment if b"=" in e)[b"RANK"])


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")


@linux
@pytest.mark.slow
def test_after_a_kill_all_go_on_from_the_last_state(folder, digits_root):
    """kill -9 of one of two in the middle ends both; --resume ends as an undisturbed run."""
    flags = ("--train", "--steps", 60, "--batch", 8, "--channels", 8, "--blocks", 1,
             "--save-every", 20, "--data-root", digits_root)  # fmt: skip
    process = torchrun("mnist_diffusion.py", *flags, "--name", "killed", cwd=folder)
    state = folder / "checkpoints/mnist/killed.state"
    wait_for(state.exists)
    os.kill(next(p for p in children(process.pid) if rank_of(p) == 1), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    for result in together(2, run_digits, "--resume", "killed"):
        assert result is None, result
    whole = trained(2, run_digits, *flags[1:], name="whole")
    ours = load_state(state), read_metrics(folder / "fig/mnist/killed/metrics.jsonl", "killed")
    assert_alike(ours, whole, rounding=1e-6)


def trained_steps(state):
    return load_state(state)["step"]


@linux
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_sigterm_at_any_process_ends_all_with_one_state(folder, digits_root, rank):
    process = torchrun("mnist_diffusion.py", "--train", "--steps", 100_000, "--batch", 8,
                       "--channels", 8, "--blocks", 1, "--save-every", 10, "--name", "a",
                       "--data-root", digits_root, cwd=folder)  # fmt: skip
    state = folder / "checkpoints/mnist/a.state"
    wait_for(state.exists)
    os.kill(next(p for p in children(process.pid) if rank_of(p) == rank), signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "mnist_diffusion.py: rank" not in output
    assert f"stopped after step {trained_steps(state)};" in output
    assert output.count("stopped after step") == 1


@linux
def test_an_error_of_one_ends_all_with_one_line_that_names_it(folder):
    """Rank 1 cannot read what the others can."""
    code = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from command_line import entry\n"
        "from common.errors import UserError\n"
        "from common.launch import launched\n"
        "from training import distributed\n"
        "def main(args):\n"
        "    distributed.start('cpu')\n"
        "    for step in range(10**9):\n"
        "        if step == 50 and launched().rank == 1:\n"
        "            raise UserError('no such picture')\n"
        "        distributed.total(step)\n"
        "print('said by', launched().rank)\n"
        "entry.run(main, entry.begin(lambda: None))\n"
    )
    (folder / "script.py").write_text(code)
    began = time.monotonic()
    process = torchrun(folder / "script.py", cwd=folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and time.monotonic() - began < 100
    assert own_lines(output, "script.py") == ["script.py: rank 1: error: no such picture"]


@linux
def test_an_error_of_all_is_said_once(folder):
    process = torchrun("train_encoder.py", "--data", "nowhere", "--size", "16x16", cwd=folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    (line,) = own_lines(output, "train_encoder.py")
    assert re.search(r"rank [01]: error: nowhere: no such folder", line)
