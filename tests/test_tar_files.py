"""Tars of pictures: which are meant, what lies where in them, and nothing else."""

import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
import torch
from fuzz import EXAMPLES, damaged_bytes
from helpers import run_encoder, run_script, write_images
from pictures import assert_same_images, encoded, everything, tarred
from PIL import Image

from data.batches import load_batches
from data.damage import Unreadable
from data.image_files import ImageFiles
from data.images import open_images
from data.tar_files import expand, list_files

SIZE = 16, 16
PNG = encoded(Image.new("RGB", (8, 8), "red"))
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def noise(seed):
    """The bytes of a picture that no other seed has."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def sample(key):
    """What WebDataset puts beside a picture."""
    return {f"{key}.png": noise(int(key)), f"{key}.json": b"{}", f"{key}.cls": b"3"}


def write_shards(folder, n, each=12):
    """n tars of `each` pictures; their keys fall, so that they are not in the order of names."""
    for i in range(n):
        contents = {}
        for k in range(each, 0, -1):
            contents |= sample(f"{i * each + k:04d}")
        tarred(folder / f"s-{i:03d}.tar", contents)
    return f"{folder}/s-{{000..{n - 1:03d}}}.tar"


def opened(files, name):
    with files.open(name) as image:
        return image.copy()


# ---- Which tars are meant -----------------------------------------------------------------------


@pytest.mark.parametrize("pattern, names", [
    ("x.tar", ["x.tar"]),
    ("a{8..11}.tar", ["a8.tar", "a9.tar", "a10.tar", "a11.tar"]),
    ("a{008..011}", ["a008", "a009", "a010", "a011"]),
    ("{1..03}", ["01", "02", "03"]), ("{0..2}", ["0", "1", "2"]), ("{7..7}", ["7"]),
    ("{0..1}/b-{8..9}", ["0/b-8", "0/b-9", "1/b-8", "1/b-9"]),
    ("{a..b}-{1..2,3}{}", ["{a..b}-{1..2,3}{}"]),
])  # fmt: skip
def test_ranges_are_those_of_bash(pattern, names):
    assert expand(pattern) == names
    if shutil.which("bash") and "{a" not in pattern:
        told = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True)
        assert told.stdout.split() == names


@pytest.mark.parametrize("pattern, message", [
    ("s-{3..1}.tar", "there is no .*s-{3..1}.tar; bring"),
    ("s-{000..000}.tar", r"there is no .*s-000.tar \(1 of 1 tars\); bring"),
    ("s-{002..007}.tar", r"there is no .*s-003.tar \(5 of 6 tars\); bring"),
    ("nowhere.tar", "no such folder, zip or tar"),
    ("s-{0..99999999999999999999}.tar", "no such folder, zip or tar"),
    ("s-{a..b}.tar", "no such folder, zip or tar"),
])  # fmt: skip
def test_what_is_not_there_is_named(tmp_path, pattern, message):
    tarred(tmp_path / "s-002.tar", {"a.png": PNG})
    with pytest.raises(ValueError, match=message) as error:
        ImageFiles(tmp_path / pattern)
    assert "\n" not in str(error.value)


def test_a_folder_stays_a_folder_and_a_zip_a_zip(tmp_path):
    write_images(tmp_path / "x.tar", 1)
    write_images(tmp_path / "s-{0..1}.tar", 1)
    assert list(ImageFiles(tmp_path / "x.tar").stamps) == ["00.png"]
    assert list(ImageFiles(tmp_path / "s-{0..1}.tar").stamps) == ["00.png"]


def test_tars_of_several_folders_are_told_apart(tmp_path):
    for i in range(2):
        (tmp_path / f"part {i}").mkdir()
        tarred(tmp_path / f"part {i}" / "x.tar", {"a.png": noise(i)})
    files = ImageFiles(tmp_path / "part {0..1}" / "x.tar")
    assert list(files.stamps) == ["part 0/x/a.png", "part 1/x/a.png"]
    assert opened(files, "part 0/x/a.png") != opened(files, "part 1/x/a.png")


# ---- The same pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_a_tar_is_as_its_folder(tmp_path, form):
    """Also what is held out, and what is counted."""
    folder = write_images(tmp_path / "a", 60, (20, 24))
    write_images(folder / "sub" / "deep", 20, mode="L", seed=1)
    for name in ("a.json", "b.JSON", "LICENSE", ".hidden.png", "__MACOSX/._00.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    with tarfile.open(tmp_path / ".hidden.tar", "w", format=form) as file:
        file.add(folder, ".")
    from_folder = open_images(str(folder), None, SIZE)
    from_tar = open_images(str(tmp_path / ".hidden.tar"), None, SIZE)
    for split, dataset in from_folder.items():
        own = {k.removeprefix(".hidden/"): v for k, v in everything(from_tar[split]).items()}
        assert_same_images(everything(dataset), own)
    assert from_tar["train"].files.left_out == from_folder["train"].files.left_out
    assert len(from_tar["valid"]) > 1


@pytest.mark.parametrize("form", FORMATS)
def test_long_and_odd_names_are_read(tmp_path, form):
    names = ["d/" * 40 + "a" * 60 + ".png", "caf\udce9.png", "é ü.png", "a.b.c.PNG", "no ending"]
    names += ["/root.png", "../up.png", "C:\\x.png", "new\nline.png", "a//b.png"]
    names += ["x" * 300 + ".png", "d" * 50_000 + "/e.png"] * (form != tarfile.USTAR_FORMAT)
    files = ImageFiles(tarred(tmp_path / "x.tar", dict.fromkeys(names, PNG), format=form))
    assert list(files.stamps) == [f"x/{name}" for name in names]
    assert all(opened(files, name).size == (8, 8) for name in files.stamps)


def test_other_shards_move_nothing(tmp_path):
    """The split, the order and the pixels of a shard are the same beside others."""
    write_shards(tmp_path, 12)
    alone = open_images(str(tmp_path / "s-004.tar"), None, SIZE)
    many = open_images(str(tmp_path / "s-{004..007}.tar"), None, SIZE)
    most = open_images(str(tmp_path / "s-{000..011}.tar"), None, SIZE)
    for split in ("train", "valid"):
        own = [name for name in many[split].names if name.startswith("s-004/")]
        assert own == alone[split].names and own
        own = [name for name in most[split].names if "s-004" <= name < "s-008"]
        assert own == many[split].names and own
    pixels = everything(most["valid"])
    assert_same_images(everything(many["valid"]), {n: pixels[n] for n in many["valid"].names})


def stamps(path):
    return {k: d.stamp() for k, d in open_images(str(path), None, SIZE).items()}


def test_stamps_change_with_pictures_and_not_with_their_place(tmp_path):
    contents = {f"{i}.png": noise(i) for i in range(8)}
    contents["a.BMP"] = encoded(Image.new("L", SIZE, 7), "BMP")
    path = tarred(tmp_path / "x.tar", contents)
    before = stamps(path)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(path, tmp_path / "elsewhere")
    assert stamps(tmp_path / "elsewhere" / "x.tar") == before
    tarred(path, {"a.txt": b"beside", **contents})
    assert stamps(path) == before
    for name, content in contents.items():
        other = content + b"\0" if name != "a.BMP" else encoded(Image.new("L", SIZE, 8), "BMP")
        assert stamps(tarred(path, {**contents, name: other})) != before
    tarred(path, contents)
    assert stamps(path) == before


def test_the_last_of_a_name_counts(tmp_path):
    """As when it is unpacked: `tar --update` appends."""
    path = tarred(tmp_path / "x.tar", {"a.png": noise(0), "b.png": noise(1)})
    with tarfile.open(path, "a") as file:
        entry = tarfile.TarInfo("a.png")
        entry.size = len(PNG)
        file.addfile(entry, io.BytesIO(PNG))
    files = ImageFiles(path)
    assert files.stamps == {"x/a.png": len(PNG), "x/b.png": len(noise(1))}
    assert opened(files, "x/a.png").size == (8, 8)


# ---- Processes ----------------------------------------------------------------------------------


def test_workers_and_threads_read_the_same(tmp_path):
    dataset = open_images(write_shards(tmp_path, 6), None, SIZE)["train"]
    expected = everything(dataset)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [order[i : i + 8] for i in range(0, len(order), 8)]
    for workers in (0, 2):
        loaded = list(load_batches(dataset, batches, workers))
        assert [indices for _, indices in loaded] == batches and not dataset.tally.reasons
        for images, indices in loaded:
            for image, i in zip(images, indices, strict=True):
                assert torch.equal(image, expected[dataset.names[i]])


# ---- Hostile and broken -------------------------------------------------------------------------


def refusal(path):
    with pytest.raises(ValueError) as error:
        ImageFiles(path)
    assert type(error.value).__name__ in ("UserError", "AbsentError", "UnreadableError")
    assert "\n" not in str(error.value) and "x.tar" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "{0..0}-x.tar"])
def test_a_compressed_tar_says_what_to_do(tmp_path, name, mode):
    with tarfile.open(tmp_path / name.replace("{0..0}", "0"), f"w:{mode}") as file:
        file.add(write_images(tmp_path / "a", 2))
    assert "is compressed, damaged" in refusal(tmp_path / name)


def test_a_name_like_a_compressed_files_beginning_is_none(tmp_path):
    assert list(ImageFiles(tarred(tmp_path / "x.tar", {"BZh.png": PNG})).stamps) == ["x/BZh.png"]


def test_only_regular_files_are_read(tmp_path):
    """Nothing is written or followed either."""
    path, secret = tmp_path / "x.tar", tmp_path / "secret.png"
    secret.write_bytes(PNG)
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    for form in FORMATS:
        with tarfile.open(path, "w", format=form) as file:
            for i, kind in enumerate([*kinds, tarfile.DIRTYPE]):
                entry = tarfile.TarInfo(f"{i}.png")
                entry.type, entry.linkname = kind, str(secret)
                if kind == tarfile.SYMTYPE and form != tarfile.USTAR_FORMAT:
                    entry.linkname += "l" * 200  # which stands in an entry of its own
                entry.size = 10**6 * (i > 0)  # which no such entry has
                file.addfile(entry)
            entry = tarfile.TarInfo("../up.png")
            entry.size = len(PNG)
            file.addfile(entry, io.BytesIO(PNG))
        assert list(ImageFiles(path).stamps) == ["x/../up.png"]
        opened(ImageFiles(path), "x/../up.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["secret.png", "x.tar"]


@pytest.mark.skipif(not shutil.which("tar"), reason="there is no tar")
@pytest.mark.parametrize("form", ["gnu", "posix", "oldgnu"])
def test_sparse_files_are_passed_over(tmp_path, form):
    with open(tmp_path / "a.png", "wb") as file:
        for i in range(100):  # more holes than there is room for in a header
            file.seek(i * 2**16)
            file.write(b"x")
    (tmp_path / "b.png").write_bytes(PNG)
    command = ["tar", "-C", tmp_path, f"--format={form}", "-Scf", tmp_path / "x.tar", "a.png"]
    if subprocess.run([*command, "b.png"], capture_output=True).returncode:
        pytest.skip("another tar")
    files = ImageFiles(tmp_path / "x.tar")
    assert list(files.stamps) in (["x/b.png"], ["x/a.png", "x/b.png"])  # a disk without holes
    assert opened(files, "x/b.png").size == (8, 8)


def test_pipes_and_folders_in_a_range_are_refused(tmp_path):
    os.mkfifo(tmp_path / "0-x.tar")
    assert "not a regular file" in refusal(tmp_path / "{0..0}-x.tar")
    assert "not a regular file" in refusal(tmp_path / "0-x.tar")
    (tmp_path / "1-x.tar").mkdir()
    assert "there is no file" in refusal(tmp_path / "{1..1}-x.tar")


def test_every_way_to_be_cut_short_is_noticed(tmp_path):
    """Also between two files, and before there is any."""
    path = tarred(tmp_path / "x.tar", {"a.png": PNG, "b.json": b"{}"})
    content = path.read_bytes()
    end = max(start + 512 for _, start, _ in list_files(path))
    for n in [*range(0, end, 64), end, end + 100]:
        path.write_bytes(content[:n])
        assert "ends too early" in refusal(path)
    path.write_bytes(content[: end + 512])
    assert list(ImageFiles(path).stamps) == ["x/a.png"]


def test_a_tar_without_pictures_is_refused(tmp_path):
    for contents in ({}, {"a.json": b"{}"}):
        path = tarred(tmp_path / "x.tar", contents)
        assert not ImageFiles(path).stamps
        with pytest.raises(ValueError, match="no readable image in .*x.tar"):
            open_images(str(path), None, SIZE)


def header(name, size, kind=b"0"):
    """One of a tar, with any size (bytes) in it and a right checksum."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


OCTAL = b"%011o\0"


@pytest.mark.parametrize(
    "size", [b"\x80" + (2**80).to_bytes(11, "big"), b"\xff" * 12, OCTAL % 2000, b"-0000000001\0"]
)
def test_sizes_that_cannot_be_are_refused(tmp_path, size):
    (tmp_path / "x.tar").write_bytes(header("a.png", size) + bytes(1024))
    assert "ends too early" in refusal(tmp_path / "x.tar")


def test_only_headers_are_read(tmp_path):
    """A file of 20 GB, all holes, stands between two pictures; a picture of 1 GB is left out."""
    path, big, large = tmp_path / "x.tar", 20 * 2**30, 2**30
    with open(path, "wb") as file:
        for name, size in (("a.png", len(PNG)), ("big.npy", big), ("b.png", large)):
            file.write(header(name, b"\x80" + size.to_bytes(11, "big")))
            file.write(PNG * (name == "a.png"))
            file.seek(-(-file.tell() // 512) * 512 + size * (name != "a.png"))
        file.write(header("c.png", OCTAL % len(PNG)) + PNG.ljust(512, b"\0") + bytes(1024))
    files = ImageFiles(path)
    assert files.stamps == {"x/a.png": len(PNG), "x/b.png": large, "x/c.png": len(PNG)}
    assert opened(files, "x/c.png").size == (8, 8)
    with pytest.raises(Unreadable, match="1.1 GB are too many"), files.open("x/b.png"):
        pass


def test_small_files_take_little_memory(tmp_path):
    content = [header(f"{i:07d}.{end}", OCTAL % 0) for i in range(1000) for end in ("png", "json")]
    (tmp_path / "x.tar").write_bytes(b"".join(content) + bytes(1024))
    tracemalloc.start()
    files = ImageFiles(tmp_path / "x.tar")
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(files.stamps) == files.left_out[".json"] == 1000
    assert taken < 500 * 1000


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_tar_is_one_sentence(tmp_path, form):
    """Bytes changed anywhere: it is refused, or its pictures can be opened, or named."""
    path, told = tmp_path / "x.tar", 0
    names = ["a.png", "b/" * 60 + "b.png", "c.bmp", "é.png", "d"]
    content = tarred(path, dict.fromkeys(names, PNG), format=form).read_bytes()
    for seed in range(5 * EXAMPLES):
        path.write_bytes(damaged_bytes(content, seed))
        try:
            files = ImageFiles(path)
        except ValueError as error:
            assert str(error).startswith(
                f"{path} is compressed, damaged, ends too early or is no tar ("
            )
            told += 1
            continue
        for name in files.stamps:
            with suppress(Unreadable), files.open(name) as image:
                assert image.size == (8, 8)
    assert told > EXAMPLES


def test_damaged_pictures_are_named_and_what_became_shorter_kills_nobody(tmp_path, capsys):
    contents = {f"{i:02d}.png": noise(i) for i in range(30)}
    contents |= {"short.png": noise(0)[:300], "text.jpg": b"no picture"}
    path = tarred(tmp_path / "x.tar", contents)
    dataset = open_images(str(path), None, SIZE)["train"]
    seen = [
        i for _, indices in load_batches(dataset, [list(range(len(dataset)))], 0) for i in indices
    ]
    told = capsys.readouterr().out
    assert "cannot be read: x/text.jpg (not an image" in told and "x/short.png (" in told
    assert not {"x/short.png", "x/text.jpg"} & {dataset.names[i] for i in seen}
    os.truncate(path, 5000)
    reasons = [image for _, image in (dataset[i] for i in seen) if isinstance(image, str)]
    assert 0 < len(reasons) < len(seen)


# ---- A run --------------------------------------------------------------------------------------


def test_an_autoencoder_learns_from_shards(tmp_path, monkeypatch, no_figures):
    write_shards(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    flags = ("--size", "16x16", "--channels", 8, "--batch", 4, "--gan-weight", 0, "--name", "a")
    run_encoder("--data", "s-{000..001}.tar", *flags, "--steps", 2)
    run_encoder("--resume", "a", "--steps", 3)
    assert len(list((tmp_path / "checkpoints" / "autoencoder").glob("a_epoch*"))) == 2


def test_a_script_refuses_in_one_line(tmp_path):
    (tmp_path / "x.tar").write_bytes(gzip.compress(bytes(1024)))
    for data, message in (
        ("x.tar", "x.tar is compressed"),
        ("s-{0..3}.tar", "s-0.tar (4 of 4 tars)"),
    ):
        status, _, err = run_script("train_encoder.py", "--data", data, cwd=tmp_path, check=False)
        assert status == 2 and message in err and "Traceback" not in err
