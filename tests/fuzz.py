"""Damage for files: at random in their bytes, and of every kind in their JSON."""

import copy
import json
import os
import random

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))  # per test that asks for them
HOSTILE = [
    None, True, -1, 0, 0.5, 10**9, 10**400, -(10**12), "", "x" * 10**6, "\x1b[2J\n", "../../x",
    [], [8192] * 3, [10**9], [-1, 0], {}, {"x": {}}, [[[]]], [None], "9" * 64, 1e-300, 1e300,
]  # fmt: skip
NO_JSON = [b"{", b"", b"\xff\xfe", b"[" * 100_000]


def damaged_bytes(content, seed):
    """content with a few bits flipped, bytes cut out, put in or cut off, as the seed has it."""
    draw, found = random.Random(seed), bytearray(content)
    kind = draw.choice(["bit", "bit", "cut", "end", "insert", "zero"])
    # Half of it in the header, which is small beside the tensors.
    at = draw.randrange(min(len(found), draw.choice([2000, len(found)])))
    if kind == "bit":
        found[at] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del found[at : at + draw.randrange(1, 9)]
    elif kind == "end":
        del found[at:]
    elif kind == "insert":
        found[at:at] = draw.randbytes(draw.randrange(1, 9))
    else:
        found[at : at + 64] = bytes(64)
    return bytes(found)


def damaged_trees(tree):
    """Every way to put a hostile value in place of, or leave out, one node of a JSON tree."""
    for path in _paths(tree):
        for value in [*HOSTILE, ...]:
            found = copy.deepcopy(tree)
            node = found
            for key in path[:-1]:
                node = node[key]
            if value is ...:
                del node[path[-1]]
            else:
                node[path[-1]] = value
            yield found


def _paths(tree, before=()):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from _paths(value, (*before, key))


def some(things):
    """EXAMPLES of them, always the same."""
    things = list(things)
    return random.Random(0).sample(things, min(EXAMPLES, len(things)))


def header_of(path):
    """(header, the tensors' bytes) of a file of tensors."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def put_header(path, header, rest):
    """Write a file of tensors with this header, a tree or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)


def assert_one_line(error, path):
    """What a user reads: a line of printable text that names the file."""
    text = str(error)
    assert text.isprintable() and len(text) < 1000 and path.name in text, text
