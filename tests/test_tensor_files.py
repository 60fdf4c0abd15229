"""Files of tensors: the format is safetensors', any damage is noticed, reading is never the end."""

import os
import stat
import time
import tracemalloc

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
from safetensors import safe_open
from safetensors.torch import save_file

from common.errors import AbsentError, DamagedError, UserError
from data.tensor_files import DTYPES, TensorFile, fingerprint, write_tensors


def tensors_of_all_kinds():
    generator = torch.Generator().manual_seed(0)
    found = {
        name: torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
        for name, dtype in DTYPES.items()
    }
    found |= {"scalar": torch.tensor(0.5), "none": torch.zeros(0, 4), "süß \ud800": torch.ones(1)}
    found["turned"] = torch.randn(4, 6, generator=generator).T
    return found


def same(one, other):
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.safetensors"
    write_tensors(path, {"a": torch.randn(40, 5), "b": torch.arange(7)}, {"facts": '{"x": 1}'})
    return path


def read(path):
    file = TensorFile(path)
    try:
        return file.metadata, file.read()
    finally:
        file.close()


def test_what_is_written_is_read(tmp_path):
    tensors = tensors_of_all_kinds()
    write_tensors(tmp_path / "a", tensors, {"facts": "süß"})
    metadata, found = read(tmp_path / "a")
    assert same(found, tensors) and metadata["facts"] == "süß"
    assert metadata["fingerprint"] == fingerprint(tensors) == fingerprint(found)
    write_tensors(tmp_path / "b", dict(reversed(tensors.items())), {"facts": "süß"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_format_is_that_of_safetensors(tmp_path):
    tensors = tensors_of_all_kinds()
    del tensors["süß \ud800"]  # no text for Rust
    write_tensors(tmp_path / "ours", tensors, {"facts": "süß"})
    with safe_open(tmp_path / "ours", "pt") as file:
        assert same({key: file.get_tensor(key) for key in file.keys()}, tensors)  # noqa: SIM118
        assert file.metadata()["facts"] == "süß"
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "theirs", {"x": "y"})
    metadata, found = read(tmp_path / "theirs")
    assert same(found, tensors) and metadata == {"x": "y"}


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_have_the_rights_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "a", {"x": torch.zeros(1)}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def refused(path, kind=UserError):
    """The time and memory that refusing takes are bounded by the file's size."""
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        read(path)
    assert time.monotonic() - began < 5 and tracemalloc.get_traced_memory()[1] < 1e8
    tracemalloc.stop()
    assert_one_line(caught.value, path)


def test_every_flipped_bit_is_noticed(path):
    """Of the header at least what it says; of the tensors all."""
    content, (metadata, tensors) = path.read_bytes(), read(path)
    start = 8 + int.from_bytes(content[:8], "little")
    for at in [*range(start), *range(start, len(content), 97)]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            found = read(path)
        except DamagedError as error:
            assert_one_line(error, path)
        else:
            assert at < start and found[0] == metadata and same(found[1], tensors), at


def test_any_damage_is_noticed(path):
    content, (metadata, tensors) = path.read_bytes(), read(path)
    for seed in range(10 * EXAMPLES):
        path.write_bytes(damaged_bytes(content, seed))
        try:
            found = read(path)
        except DamagedError as error:
            assert_one_line(error, path)
        else:
            assert found[0] == metadata and same(found[1], tensors), seed


def test_headers_may_say_anything(path):
    """Without digests too, as files of earlier versions are."""
    header, rest = header_of(path)
    tensors = read(path)[1]
    plain = {k: v for k, v in header.items() if k != "__metadata__"}
    for tree in some([*damaged_trees(header), *damaged_trees(plain), *HOSTILE]):
        put_header(path, tree, rest)
        try:
            assert same(read(path)[1], tensors)
        except DamagedError as error:
            assert_one_line(error, path)


@pytest.mark.parametrize("text", NO_JSON)
def test_headers_that_are_no_json(path, text):
    put_header(path, text, b"")
    refused(path, DamagedError)


@pytest.mark.parametrize(
    "about",
    [
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [2**45, 0, 2**45], "data_offsets": [0, 0]},
        {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1] * 999, "data_offsets": [0, 4]},
    ],
)
def test_tensors_that_cannot_be(path, about):
    put_header(path, {"x" * 10**5: about}, b"\0" * 4)
    refused(path, DamagedError)


@pytest.mark.parametrize("begin", [0, 2, 8])
def test_no_byte_is_of_two_tensors_or_of_none(path, begin):
    """Else a small file could ask for any memory."""
    about = {"dtype": "U8", "shape": [4]}
    places = {"a": [0, 4], "b": [begin, begin + 4]}
    header = {name: {**about, "data_offsets": place} for name, place in places.items()}
    put_header(path, header, bytes(begin + 4))
    refused(path, DamagedError)
    put_header(path, header | {"b": {**about, "data_offsets": [4, 8]}}, bytes(8))
    assert len(read(path)[1]) == 2


def test_headers_and_files_of_any_size(path):
    path.write_bytes((2**60).to_bytes(8, "little"))
    refused(path, DamagedError)
    with open(path, "wb") as file:  # a terabyte of zeros that take no room
        file.write((2**39).to_bytes(8, "little"))
        file.truncate(2**40)
    refused(path, DamagedError)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(path, dtype, value):
    tensor = torch.full((9,), torch.finfo(dtype).max, dtype=dtype)
    tensor[0] *= -1
    write_tensors(path, {"x": tensor}, {})
    assert same(read(path)[1], {"x": tensor})
    tensor[5] = value
    write_tensors(path, {"x": tensor}, {})
    with pytest.raises(DamagedError, match="x is not finite"):
        read(path)


def test_a_file_that_becomes_shorter_is_noticed(path):
    file = TensorFile(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DamagedError, match=r"some.safetensors is damaged \(it has become shorter"):
        file.read()
    file.close()


def test_only_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):  # neither waited for nor read to the end
        with pytest.raises(UserError, match=f"{path} cannot be read .not a regular file"):
            TensorFile(path)
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent" / "x"):
        with pytest.raises(AbsentError, match=f"no file {path}"):
            TensorFile(path)
