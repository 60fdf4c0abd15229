"""What the benchmarks measure is what they say: counts, peers of one structure, the records."""

from types import SimpleNamespace

import pytest
import torch
from helpers import run_script, write_mnist
from torch import nn

from benchmarks import mnist, pipeline, steps
from benchmarks.report import Figure, Report, alternate
from command_line.parsers import parse_mnist
from data.latents import LatentDataset
from data.order import ShuffledOrder
from models.classifier import Classifier, ClassifierConfig


def test_targets_are_met_on_the_right_side():
    assert Figure("a", 0.5, "s", "<= 0.5").met and not Figure("a", 0.51, "s", "<= 0.5").met
    assert Figure("a", 1.7, "", ">= 1.7").met and not Figure("a", 1.6, "", ">= 1.7").met
    assert Figure("a", 1.0, "").met is None


def test_report_prints_json_and_a_table(capsys):
    report = Report()
    report.add("speed", 12345.6, "images/s", note="of drawn faces")
    report.add("time", 0.7, "s", "<= 0.5")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('{"name": "speed", "value": 12345.6')
    assert '"met": false' in lines[1]
    assert "| speed | 12,346 images/s |  |  | of drawn faces |" in report.table()
    assert "| time | 0.7 s | <= 0.5 | **no** |  |" in report.table()


def test_workers_take_turns_and_are_timed():
    seconds = alternate(
        {
            "short": "lambda: report.time.sleep(0.01)",
            "long": "lambda: report.time.sleep(0.1)",
        },
        rounds=3,
        calls=2,
    )
    assert seconds["short"] >= 0.01 and seconds["long"] > 2 * seconds["short"]
    with pytest.raises(RuntimeError, match="has ended"):
        alternate({"broken": "lambda: 1 / 0"})


def test_flops_and_kept_bytes_of_a_layer():
    layer, x = nn.Linear(8, 5, bias=False), torch.randn(3, 8, requires_grad=True)

    def step():
        layer(x).sigmoid().sum().backward()

    assert steps.count(step) == 3 * 2 * 3 * 8 * 5  # forward, and a gradient for x and for weights
    assert steps.kept_bytes(step, layer) == 4 * (3 * 8 + 3 * 5)  # x, and the sigmoid's result


def test_peers_have_our_structure_and_size():
    ours, _ = steps.our_network()
    pytest.importorskip("diffusers")
    _, theirs = steps.diffusers_denoiser("cpu", "fp32")
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert shapes == {key: value.shape for key, value in ours.state_dict().items()}
    pytest.importorskip("denoising_diffusion_pytorch")
    _, theirs = steps.ddpm_pytorch_denoiser("cpu", "fp32")
    assert steps.size(theirs) == pytest.approx(steps.size(ours), rel=0.15)


def test_caches_of_the_benchmark_are_read_as_any(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "SHARD", 4)
    pipeline.fill_cache(tmp_path, 10, (3, 2, 2))
    latents = LatentDataset(tmp_path, "train")
    assert len(latents) == 10 and latents.draw(torch.arange(10)).shape == (10, 3, 2, 2)


@pytest.mark.parametrize("name", ["diffusers", "denoising-diffusion-pytorch"])
def test_peers_learn_digits(name):
    pytest.importorskip(name.replace("-", "_"))
    maker = next(make for key, make in mnist.peers().items() if key == f"{name}, our rate and EMA")
    torch.manual_seed(0)
    peer = maker(torch.device("cpu"))
    peer.network.eval()  # no dropout
    images = torch.zeros(8, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 8:20, 12:16] = 255
    order = ShuffledOrder(8, 8, 0)

    def loss():
        torch.manual_seed(1)
        with torch.no_grad():
            return sum(peer.loss(images.float() / 127.5 - 1).item() for _ in range(4))

    before = loss()
    for step in range(15):
        peer.step(images[order.indices(step)], step, 15)
    assert loss() < 0.8 * before
    samples = peer.samples([0, 1])
    assert samples.shape == (2, 1, 28, 28) and samples.abs().max() <= 1


def test_results_are_kept_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "RESULTS", tmp_path / "folder" / "r.jsonl")
    of = {"ours": {"lr": 0.1}, "a peer": {"lr": 0.3}}
    assert mnist.read_results(of) == ({}, [])
    mnist.keep({"contender": "ours", "speed": 7.5}, of)
    for name in of:
        mnist.keep({"contender": name, "minutes": 10.0}, of)
    speeds, records = mnist.read_results(of)
    assert speeds == {"ours": 7.5}
    assert [(r["contender"], r["minutes"]) for r in records] == [("ours", 10), ("a peer", 10)]
    speeds, (record,) = mnist.read_results({**of, "ours": {"lr": 0.2}})
    assert not speeds and record["contender"] == "a peer"  # what depends on it is not reused


def test_only_our_own_results_depend_on_our_loss(monkeypatch):
    classifier = Classifier(ClassifierConfig(1, (8,), 4, 10))

    def known(name):
        return mnist.settings(name, torch.device("cpu"), classifier)

    before = known("ours"), known("diffusers, as its example")
    monkeypatch.setattr(mnist, "LOG_MEAN", 0.5)
    assert known("ours") != before[0] and known("diffusers, as its example") == before[1]
    monkeypatch.setattr(mnist, "mnist_args", lambda: parse_mnist(["--train", "--lr", "1"]))
    assert known("diffusers, as its example") != before[1]


def test_cosine_is_warmed_up():
    assert [mnist.cosine(s, 10_000) for s in (0, 250, 500)] == [0, 0.5, 1]
    assert mnist.cosine(10_000, 10_000) == pytest.approx(0)


@pytest.mark.parametrize(
    "schedule, steps_made", [(mnist.constant, [0, 1, 2, 3, 4]), (mnist.cosine, [0, 1, *range(5)])]
)
def test_only_peers_of_constant_rate_go_on_to_the_next_budget(schedule, steps_made, monkeypatch):
    made = []

    class Fake:
        def __init__(self, device):
            self.batch, self.schedule = 4, schedule

        def step(self, images, step, total):
            made.append(step)

    monkeypatch.setattr(mnist, "peers", lambda: {"fake": Fake})
    digits = torch.zeros(8, 1, 28, 28, dtype=torch.uint8)
    first, second = mnist.train_peer("fake", torch.device("cpu"), digits, [2, 5])
    assert made == steps_made
    assert (first is second) == (schedule is mnist.constant)


def test_ours_can_be_trained_for_several_budgets(tmp_path, monkeypatch, no_figures):
    """Each budget begins anew, in a folder that no run of the user's is in."""
    monkeypatch.chdir(tmp_path)
    within = lambda command, check, cwd: run_script(*command[1:], cwd=cwd)  # noqa: E731
    monkeypatch.setattr(mnist, "subprocess", SimpleNamespace(run=within))  # no process
    write_mnist(tmp_path, train=70, test=20)
    for total in (1, 2):
        samples = mnist.train_ours("cpu", ".", total)
        assert samples([0, 1]).shape == (2, 1, 28, 28)
