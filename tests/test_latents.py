"""Laws of the latent cache: its statistics, interruption at any point, what changes its name."""

import errno
import json
import math
import multiprocessing
import os
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from fuzz import (
    EXAMPLES,
    HOSTILE,
    assert_one_line,
    damaged_bytes,
    damaged_trees,
    header_of,
    put_header,
    some,
)
from helpers import tree, write_images
from torch.nn.functional import avg_pool2d

from common.errors import AbsentError, DamagedError, UnreadableError, UserError
from data import caching, latents
from data.caching import cache_bytes, cache_id, cache_latents
from data.damage import BadFiles
from data.images import open_images
from data.latents import LatentDataset, LatentStats
from data.pixels import to_pixels
from data.tensor_files import TensorFile

SHAPE = (3, 4, 5)  # latents of images of 16x20
POSITION = torch.linspace(-1, 1, 5)  # the encoder knows left from right


class Pictures:
    """Random images in memory, with FileDataset's interface; those in `bad` cannot be read."""

    channels, size = 3, (16, 20)

    def __init__(self, n, seed, bad=()):
        generator = torch.Generator().manual_seed(seed)
        self.tally = BadFiles(n)
        self.names, self.bad, self.seed = [f"{seed}/{i}.png" for i in range(n)], bad, seed
        blobs = torch.rand(n, 3, 4, 5, generator=generator)
        self.images = (255 * blobs).to(torch.uint8).repeat_interleave(4, 2).repeat_interleave(4, 3)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        return i, "damaged" if i in self.bad else self.images[i]

    def stamp(self):
        return f"{self.seed}: {len(self)}"


def encode(x):
    """(B, 3, 16, 20) -> (B, 6, 4, 5): each image by itself, the same in any batch."""
    small = avg_pool2d(x, 4) + POSITION
    scale = torch.tensor([3.0, 0.5, 1.0])[:, None, None]
    return torch.cat([scale * small + 2, small - scale], dim=1)


def no_encode(x):
    raise AssertionError("nothing is left to encode")


def as_stored(pictures, indices, flip=False):
    x = to_pixels(pictures.images[indices])
    return encode(x.flip(3) if flip else x).half()


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(caching, "SHARD", 8)
    monkeypatch.setattr(caching, "BATCH", 4)


@pytest.fixture
def pictures():
    return {"train": Pictures(21, seed=0), "valid": Pictures(10, seed=1)}


def cached(datasets, folder, mirror=False, encode=encode):
    cache_latents(encode, datasets, SHAPE, folder, mirror, workers=0)
    return {split: LatentDataset(folder, split) for split in datasets}


# ---- Whitening ----------------------------------------------------------------------------------


def test_whiten_and_unwhiten_are_inverse():
    stats = LatentStats((0.5, -20.0, 0.0), (3.0, 0.01, 1.0))
    z = torch.randn(6, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(stats.unwhiten(stats.whiten(z)), z)
    torch.testing.assert_close(stats.whiten(stats.unwhiten(z)), z)
    mean, std = (torch.tensor(v, dtype=z.dtype)[:, None, None] for v in (stats.mean, stats.std))
    torch.testing.assert_close(stats.whiten(z), (z - mean) / std)
    assert stats.whiten(z.float()).dtype == stats.unwhiten(z.float()).dtype == torch.float32


@pytest.mark.parametrize("mirror", [False, True])
def test_stats_are_of_what_is_drawn(tmp_path, small_shards, pictures, mirror):
    """Law of total variance: of the means, plus the mean of the variances; training set only."""
    data = cached(pictures, tmp_path, mirror)
    mean, logvar = data["train"].moments(range(len(data["train"]))).double().chunk(2, dim=1)
    variance = mean.var(dim=(0, 2, 3), correction=0) + logvar.exp().mean(dim=(0, 2, 3))
    expected = LatentStats(
        tuple(mean.mean(dim=(0, 2, 3)).tolist()), tuple(variance.sqrt().tolist())
    )
    for dataset in data.values():
        assert dataset.stats.mean == pytest.approx(expected.mean, rel=1e-10)
        assert dataset.stats.std == pytest.approx(expected.std, rel=1e-10)


def test_draws_are_white(tmp_path, small_shards, pictures):
    data = cached(pictures, tmp_path)["train"]
    z = torch.cat([data.draw(range(len(data))) for _ in range(600)])
    assert z.shape == (600 * len(data), *SHAPE) and z.dtype == torch.float32
    torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(3), atol=0.01, rtol=0)
    torch.testing.assert_close(z.std(dim=(0, 2, 3)), torch.ones(3), atol=0.01, rtol=0)


def test_each_read_is_a_fresh_draw_of_the_posterior(tmp_path, small_shards, pictures):
    data = cached(pictures, tmp_path)["valid"]
    draws = data.stats.unwhiten(torch.stack([data.draw([3, 9, 3]) for _ in range(4000)]))
    mean, logvar = data.moments([3, 9, 3]).float().chunk(2, dim=1)
    std = (0.5 * logvar).exp()
    assert ((draws.mean(0) - mean).abs() < 6 * std / 4000**0.5).all()
    assert ((draws.std(0) / std - 1).abs() < 6 / 8000**0.5).all()
    assert (draws[:, 0] != draws[:, 2]).any(dim=0).all()  # twice the same image: two draws


def test_draws_repeat_only_by_their_noise(tmp_path, small_shards, pictures):
    data = cached(pictures, tmp_path)["train"]

    def noise(seed, shape):
        return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))

    a, b, c = (data.draw([0, 20], noise=partial(noise, seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_means_are_what_draws_scatter_about(tmp_path, small_shards, pictures):
    data = cached(pictures, tmp_path)["train"]
    mean, logvar = data.moments([5, 17]).float().chunk(2, dim=1)
    torch.testing.assert_close(data.stats.unwhiten(data.means([5, 17])), mean)
    draws = torch.stack([data.draw([5, 17]) for _ in range(4000)])
    std = (0.5 * logvar).exp() / torch.tensor(data.stats.std)[:, None, None]
    assert ((draws.mean(0) - data.means([5, 17])).abs() < 6 * std / 4000**0.5).all()


# ---- What is stored -----------------------------------------------------------------------------


def test_moments_are_stored_in_order(tmp_path, small_shards, pictures):
    data = cached(pictures, tmp_path / "made" / "with parents")
    for split, dataset in data.items():
        n = len(pictures[split])
        assert len(dataset) == n
        order = torch.randperm(n)
        for indices in (range(n), order, order.tolist(), [n - 1, 0, n - 1], [7, 8]):
            stored = dataset.moments(indices)
            assert stored.dtype == torch.float16
            assert torch.equal(stored, as_stored(pictures[split], torch.as_tensor(indices)))


def test_mirror_adds_the_encoding_of_each_flipped_training_image(tmp_path, small_shards, pictures):
    data = cached(pictures, tmp_path, mirror=True)
    n = len(pictures["train"])
    everyone = list(range(n))
    assert len(data["train"]) == 2 * n and len(data["valid"]) == len(pictures["valid"])
    assert torch.equal(data["train"].moments(range(n)), as_stored(pictures["train"], everyone))
    mirrored = data["train"].moments(range(n, 2 * n))
    assert torch.equal(mirrored, as_stored(pictures["train"], everyone, flip=True))
    assert not torch.equal(mirrored, data["train"].moments(range(n)).flip(3))
    assert torch.equal(
        data["valid"].moments(range(len(data["valid"]))),
        as_stored(pictures["valid"], list(range(len(data["valid"])))),
    )


@pytest.mark.parametrize("mirror", [False, True])
def test_cache_bytes_are_those_of_the_tensors(tmp_path, small_shards, pictures, mirror):
    data = cached(pictures, tmp_path, mirror)
    stored = sum(d.moments(range(len(d))).nbytes for d in data.values())
    assert cache_bytes(pictures, SHAPE, mirror) == stored
    files = sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    assert stored < files < stored + 1000 * len(list(tmp_path.iterdir()))


@pytest.mark.parametrize("bad", [{2}, {0, 20}, {8, 9, 10, 11, 12, 13, 14, 15}])
@pytest.mark.parametrize("mirror", [False, True])
def test_unreadable_images_are_left_out(tmp_path, small_shards, pictures, capsys, bad, mirror):
    pictures["train"].bad = bad  # the last: a whole shard
    data = cached(pictures, tmp_path, mirror)["train"]
    good = [i for i in range(len(pictures["train"])) if i not in bad]
    assert len(data) == (1 + mirror) * len(good)
    expected = [as_stored(pictures["train"], good, flip) for flip in (False, True)[: 1 + mirror]]
    moments = data.moments(range(len(data)))
    assert torch.equal(moments, torch.cat(expected))
    mean = moments.double().chunk(2, dim=1)[0].mean(dim=(0, 2, 3))
    assert data.stats.mean == pytest.approx(mean.tolist(), rel=1e-10)
    out = capsys.readouterr().out
    assert all(out.count(f"cannot be read: 0/{i}.png (damaged)\n") == 1 for i in bad)


def test_too_many_unreadable_images_stop(tmp_path, small_shards, pictures):
    pictures["train"].bad = set(range(11))
    with pytest.raises(ValueError, match="of 21 images cannot be read"):
        cached(pictures, tmp_path)
    assert not (tmp_path / latents.MANIFEST).exists()


def test_no_readable_training_image_stops(tmp_path, small_shards, pictures):
    pictures["train"] = Pictures(10, seed=0, bad=set(range(10)))
    pictures["train"].tally.total = 20  # of both splits together, 10 may be bad
    with pytest.raises(ValueError, match="none of the training images can be read"):
        cached(pictures, tmp_path)


def test_files_on_disk_are_cached(tmp_path, small_shards):
    """The whole way, with an image whose header is right and whose pixels are cut off."""
    folder = write_images(tmp_path / "pictures", 30)
    cut = (folder / "07.png").read_bytes()
    (folder / "07.png").write_bytes(cut[: len(cut) // 2])
    datasets = open_images(str(folder), None, Pictures.size)
    data = cached(datasets, tmp_path / "cache")
    for split, dataset in data.items():
        images = [datasets[split][i][1] for i in range(len(datasets[split]))]
        x = torch.stack([image for image in images if not isinstance(image, str)])
        assert len(x) == len(images) - ("07.png" in datasets[split].names)
        assert torch.equal(dataset.moments(range(len(dataset))), encode(to_pixels(x)).half())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e6])  # fp16 ends at 65504
def test_output_that_is_not_finite_is_refused(tmp_path, small_shards, pictures, value):
    def broken(x):
        moments = encode(x)
        moments[-1, 2, 1, 1] = value
        return moments

    with pytest.raises(ValueError, match="not finite"):
        cached(pictures, tmp_path, encode=broken)
    assert not list(tmp_path.iterdir())


# ---- Interruption -------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupted_after(calls):
    left = iter(range(calls))

    def encode_some(x):
        if next(left, None) is None:
            raise Interrupted
        return encode(x)

    return encode_some


@pytest.mark.parametrize("mirror", [False, True])
def test_caching_goes_on_where_it_stopped(tmp_path, small_shards, pictures, mirror):
    cached(pictures, tmp_path / "whole", mirror)
    expected = tree(tmp_path / "whole")
    shards = [8, 8, 5, 8, 2] + [8, 8, 5] * mirror  # 21 for training and 10, in shards of 8
    calls_of = [-(-n // 4) for n in shards]
    for calls in range(sum(calls_of)):
        folder = tmp_path / f"after {calls}"
        with pytest.raises(Interrupted):
            cached(pictures, folder, mirror, interrupted_after(calls))
        finished = sum(sum(calls_of[: k + 1]) <= calls for k in range(len(shards)))
        left = tree(folder)
        assert len(left) == finished and Path(latents.MANIFEST) not in left
        assert all(left[name] == expected[name] for name in left)
        with pytest.raises(AbsentError, match=latents.MANIFEST):
            LatentDataset(folder, "train")

        encoded = []

        def counted(x, encoded=encoded):
            encoded.append(len(x))
            return encode(x)

        cached(pictures, folder, mirror, counted)
        assert sum(encoded) == sum(shards[finished:])
        assert tree(folder) == expected


def test_a_finished_cache_is_not_encoded_again(tmp_path, small_shards, pictures):
    cached(pictures, tmp_path)
    before = tree(tmp_path)
    cached(pictures, tmp_path, encode=no_encode)
    assert tree(tmp_path) == before


def test_a_failing_write_leaves_no_shard(tmp_path, small_shards, pictures, monkeypatch):
    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="no space left: .*train-00000.safetensors"):
            cached(pictures, tmp_path)
    assert not list(tmp_path.iterdir())
    cached(pictures, tmp_path)


def test_a_too_small_disk_is_refused_before_encoding(tmp_path, small_shards, pictures, monkeypatch):
    needed = cache_bytes(pictures, SHAPE, mirror=True)

    def disk_with(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: (10 * needed, 0, free))

    disk_with(needed - 1)
    with pytest.raises(ValueError, match="GB are free; make room"):
        cached(pictures, tmp_path, mirror=True, encode=no_encode)
    assert not list(tmp_path.iterdir())
    disk_with(needed)
    with pytest.raises(Interrupted):
        cached(pictures, tmp_path, mirror=True, encode=interrupted_after(8))
    disk_with(needed // 2)  # what is there needs no room again
    with pytest.raises(ValueError, match="make room"):
        cached(pictures, tmp_path / "from the start", mirror=True, encode=no_encode)
    cached(pictures, tmp_path, mirror=True)


# ---- Damage -------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def empty(path):
    path.write_bytes(b"")


def garble(path):
    path.write_bytes(b"\xff" * 100)


def remove(path):
    path.unlink()


def lose_the_stats(path):
    manifest = json.loads(path.read_text())
    del manifest["stats"]
    path.write_text(json.dumps(manifest))


def flip_a_bit(path):
    found = bytearray(path.read_bytes())
    found[-1] ^= 1
    path.write_bytes(found)


def flip_a_bit_of_the_sums(path):
    path.write_bytes(path.read_bytes().replace(b"count", b"count"[:-1] + b"u"))


def swap(path):
    """With the next shard, which is as healthy."""
    other = path.with_name(path.name.replace("1.", "0."))
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def change_the_stats(path):
    path.write_text(path.read_text().replace('"mean": [\n   ', '"mean": [\n   1'))


SHARD_DAMAGE = truncate, empty, garble, remove, flip_a_bit, flip_a_bit_of_the_sums, swap
DAMAGE = [
    *[("train-00001.safetensors", d) for d in SHARD_DAMAGE],
    *[(latents.MANIFEST, d)
      for d in (truncate, empty, garble, remove, flip_a_bit, lose_the_stats, change_the_stats)],
]  # fmt: skip


@pytest.mark.parametrize("name, damage", DAMAGE)
def test_damage_is_told_and_made_again(tmp_path, small_shards, pictures, capsys, name, damage):
    cached(pictures, tmp_path)
    before = tree(tmp_path)
    damage(tmp_path / name)
    changed = {path for path, content in before.items() if tree(tmp_path).get(path) != content}
    assert changed

    # Who only reads says so, at once or with the first image of the shard.
    with pytest.raises(UserError, match="train-0000|manifest") as caught:
        LatentDataset(tmp_path, "train").moments([9])
    assert_one_line(caught.value, min(changed))

    # The next caching tells it, encodes that alone, and goes on.
    capsys.readouterr()
    encoded = []

    def counted(x):
        encoded.append(len(x))
        return encode(x)

    cached(pictures, tmp_path, encode=counted)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == (0 if damage is remove else len(changed))
    assert all(line.startswith("made again: ") for line in told)
    assert sum(encoded) == 8 * sum(path.suffix == ".safetensors" for path in changed)
    assert tree(tmp_path) == before
    cached(pictures, tmp_path, encode=no_encode)


def test_a_shard_that_becomes_shorter_is_noticed(tmp_path, small_shards, pictures):
    """Also while it is open: whoever reads a map of it would be killed."""
    data = cached(pictures, tmp_path)["train"]
    os.truncate(tmp_path / "train-00001.safetensors", 600)
    data.moments([0])
    with pytest.raises(DamagedError, match="train-00001.safetensors is damaged .*shorter"):
        data.moments([15])


def test_each_shard_is_checked_once(tmp_path, small_shards, pictures, monkeypatch):
    """When it is first read from; never where cache_latents has just done so."""
    cached(pictures, tmp_path)
    read, reads = TensorFile.read, []
    monkeypatch.setattr(TensorFile, "read", lambda file: reads.append(file.path.name) or read(file))
    data = LatentDataset(tmp_path, "train")
    assert reads == []
    for _ in range(2):
        data.moments([0, 9, 1])
    assert reads == ["train-00000.safetensors", "train-00001.safetensors"]
    LatentDataset(tmp_path, "train", checked=True).moments(range(21))
    assert len(reads) == 2


def test_more_shards_than_may_be_open(tmp_path, small_shards, pictures, monkeypatch):
    data = cached(pictures, tmp_path)["train"]
    expected = data.moments(range(21))
    monkeypatch.setattr(latents, "OPEN_FILES", 1)
    data = LatentDataset(tmp_path, "train")
    order = torch.randperm(21)
    assert torch.equal(data.moments(order), expected[order]) and len(data._files) == 1


def test_what_may_not_be_read_is_never_made_again(tmp_path, small_shards, pictures, monkeypatch):
    cached(pictures, tmp_path)
    for name in ("train-00001.safetensors", latents.MANIFEST):

        def closed(path, *rest, name=name, really=os.open):
            if Path(path).name == name:
                raise PermissionError(errno.EACCES, "Permission denied")
            return really(path, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", closed)
            for use in (lambda: cached(pictures, tmp_path, encode=no_encode),
                        lambda: LatentDataset(tmp_path, "train")):  # fmt: skip
                with pytest.raises(UnreadableError, match=f"{name} may not be read"):
                    use()


def test_caches_of_earlier_versions_are_read(tmp_path, small_shards, pictures):
    """They hold no digests, but what is not finite is refused in them too."""
    data = cached(pictures, tmp_path)["train"]
    expected = data.moments(range(21))
    for path in tmp_path.glob("*.safetensors"):
        header, rest = header_of(path)
        metadata = header["__metadata__"]
        header["__metadata__"] = {"sums": metadata["sums"]}
        put_header(path, header, rest)
    manifest = json.loads((tmp_path / latents.MANIFEST).read_text())
    del manifest["digest"], manifest["digests"]
    (tmp_path / latents.MANIFEST).write_text(json.dumps(manifest))
    data = cached(pictures, tmp_path, encode=no_encode)["train"]
    assert torch.equal(data.moments(range(21)), expected)
    content = (tmp_path / "train-00000.safetensors").read_bytes()
    (tmp_path / "train-00000.safetensors").write_bytes(content[:-1] + b"\x7e")  # NaN
    with pytest.raises(DamagedError, match="not finite"):
        LatentDataset(tmp_path, "train").moments([0])
    assert torch.equal(cached(pictures, tmp_path)["train"].moments(range(21)), expected)


def test_manifests_may_say_anything(tmp_path, small_shards, pictures):
    """Without a digest, as earlier versions wrote them."""
    cached(pictures, tmp_path)
    path = tmp_path / latents.MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["digest"], manifest["digests"]
    empty = {**manifest, "shards": {"train": [], "valid": []}}
    for found in [empty, *some([*damaged_trees(manifest), *HOSTILE])]:
        path.write_text(json.dumps(found))
        try:
            data = LatentDataset(tmp_path, "train")
            assert data.draw(range(len(data))).isfinite().all()
        except UserError as error:
            assert "is damaged" in str(error) and len(str(error)) < 1000
        assert len(cached(pictures, tmp_path, encode=no_encode)["train"]) == 21


@pytest.mark.parametrize("name", ["train-00000.safetensors", latents.MANIFEST])
def test_any_damage_is_noticed(tmp_path, small_shards, pictures, name):
    data = cached(pictures, tmp_path)["train"]
    expected, content = data.moments(range(21)), (tmp_path / name).read_bytes()
    for seed in range(2 * EXAMPLES):
        (tmp_path / name).write_bytes(damaged_bytes(content, seed))
        try:
            found = LatentDataset(tmp_path, "train")
            assert found.stats == data.stats and torch.equal(found.moments(range(21)), expected)
        except UserError as error:
            assert_one_line(error, tmp_path / name)


def test_processes_that_cache_together_all_succeed(tmp_path, small_shards, pictures):
    cached(pictures, tmp_path / "alone")

    def child():
        torch.set_num_threads(1)  # the threads of a pool are not there in a fork
        time.sleep(max(0, begin - time.time()))
        cached(pictures, tmp_path / "together")

    context, begin = multiprocessing.get_context("fork"), time.time() + 0.3
    processes = [context.Process(target=child) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    assert tree(tmp_path / "together") == tree(tmp_path / "alone")


# ---- The name -----------------------------------------------------------------------------------


def test_cache_id_is_of_all_that_matters(tmp_path):
    def datasets(size=(16, 20), folder="a"):
        return open_images(str(tmp_path / folder), None, size)

    for folder in "abc":
        write_images(tmp_path / folder, 6)
    (tmp_path / "b" / "05.png").write_bytes((tmp_path / "b" / "05.png").read_bytes() + b"\0")
    write_images(tmp_path / "grey", 6, mode="L")
    one = cache_id("encoder 1", datasets(), False)
    assert one == cache_id("encoder 1", datasets(), False)
    assert one == cache_id("encoder 1", datasets(folder="c"), False)  # the place is no matter
    assert one == cache_id("encoder 1", dict(reversed(datasets().items())), False)
    others = [
        cache_id("encoder 2", datasets(), False),
        cache_id("encoder 1", datasets(), True),
        cache_id("encoder 1", datasets(size=(20, 16)), False),
        cache_id("encoder 1", datasets(size=(16, 24)), False),
        cache_id("encoder 1", datasets(folder="b"), False),
        cache_id("encoder 1", datasets(folder="grey"), False),
    ]
    (tmp_path / "a" / "new.png").write_bytes((tmp_path / "a" / "00.png").read_bytes())
    others.append(cache_id("encoder 1", datasets(), False))
    assert len({one, *others}) == 1 + len(others)
    assert all(name.isalnum() for name in (one, *others))  # the name of a folder
