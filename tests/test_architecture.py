"""The arrows between the rooms, what may be imported where, and how long code may be."""

import ast
import importlib
import re
import subprocess
import sys

import pytest
from helpers import ROOT

SCRIPTS = ("mnist_diffusion", "train_encoder", "latent_diffusion")
ALLOWED = {  # what each room imports of the project
    "common": {"common"},
    "command_line": {"command_line", "common"},
    "models": {"models", "common"},
    "data": {"data", "common"},
    "training": {"training", "models", "data", "common"},
    "generation": {"generation", "training", "models", "data", "common"},
}
OURS = {*ALLOWED, *SCRIPTS, "benchmarks", "tests"}
WITHOUT_TORCH = ("common", "command_line")  # --help must answer at once
REQUIRED = re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
RUNTIME = {{"pillow": "PIL"}.get(package, package) for package in REQUIRED}
SCRIPT_FILES = [ROOT / f"{script}.py" for script in SCRIPTS]
PRODUCT = [*SCRIPT_FILES, *(p for room in ALLOWED for p in sorted((ROOT / room).glob("*.py")))]

FILE_LINES, FUNCTION_LINES, LOOP_LINES = 350, 60, 100
LOOPS = {  # (file, function): a training loop reads best from top to bottom
    ("training/denoiser.py", "train"),
    ("training/autoencoder.py", "train"),
}


def imports(path):
    """Top-level names of every module that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module.split(".")[0])
    return names


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def too_long(path):
    """What of a file is longer than it may be, in words."""
    text, name = path.read_text(), name_of(path)
    lines = len(text.splitlines())
    found = [f"{name}: {lines} lines"] if lines > FILE_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > (LOOP_LINES if (name, node.name) in LOOPS else FUNCTION_LINES):
                found.append(f"{name}: {node.name} has {lines} lines")
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows_run_down_only(room):
    for path in (ROOT / room).glob("*.py"):
        wrong = imports(path) & OURS - ALLOWED[room]
        assert not wrong, f"{name_of(path)} must not import {wrong}"


@pytest.mark.parametrize("path", SCRIPT_FILES, ids=SCRIPTS)
def test_scripts_import_no_script_and_no_benchmark(path):
    assert not imports(path) & {*SCRIPTS, "benchmarks", "tests"}


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_rooms_of_the_rim_import_no_torch(room):
    """Nor anything else that takes a second."""
    for path in (ROOT / room).glob("*.py"):
        assert not imports(path) & RUNTIME, name_of(path)


def test_every_room_is_known():
    """A new package must be given its arrows here."""
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert packages == {*ALLOWED, "benchmarks"}


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_only_runtime_packages_are_imported(path):
    foreign = imports(path) - set(sys.stdlib_module_names) - OURS
    assert foreign <= RUNTIME, f"{name_of(path)} imports {foreign - RUNTIME}"


def test_only_figures_imports_matplotlib():
    assert {p.name for p in PRODUCT if "matplotlib" in imports(p)} == {"figures.py"}


def test_package_inits_are_empty():
    assert all(p.read_text() == "" for p in ROOT.glob("*/__init__.py"))


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_files_and_functions_are_short(path):
    long = too_long(path)
    assert not long, "; ".join(long)


def test_exceptions_are_there():
    """A function that was renamed takes its exception with it."""
    for file, function in LOOPS:
        tree = ast.parse((ROOT / file).read_text())
        assert function in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_no_torch(script):
    """--help answers in under half a second because it never reaches torch."""
    code = f"import sys, runpy; sys.argv = ['{script}.py', '--help']\n" + (
        f"try: runpy.run_path(r'{ROOT / (script + '.py')}', run_name='__main__')\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


@pytest.mark.slow  # 14 s on one core: a process imports all there is
def test_importing_the_scripts_does_nothing(tmp_path):
    """Importing has no side effect: it parses nothing, writes nothing."""
    code = f"import sys; sys.path.insert(0, r'{ROOT}')\n"
    code += "\n".join(f"import {script}; assert {script}.main" for script in SCRIPTS)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_imports_in_the_documents_are_there():
    """Of every piece of code in them: modules and names that this project has."""
    pattern = rf"^ *from ((?:{'|'.join(ALLOWED)})[.\w]*) import ([\w, ]+)$"
    found = []
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"]:
        found += re.findall(pattern, path.read_text(), flags=re.MULTILINE)
    assert len(found) >= 5  # else this shows nothing
    for module, names in found:
        assert all(hasattr(importlib.import_module(module), n.strip()) for n in names.split(","))


def test_tests_in_the_documents_are_there():
    """Of every promise; ".." stands for the beginning of several."""
    names = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE)
    }
    found = re.findall(r"`(\.\._|test_)(\w+)`", (ROOT / "docs" / "promises.md").read_text())
    assert len(found) > 20
    for start, rest in found:
        known = start + rest in names if start == "test_" else any(n.endswith(rest) for n in names)
        assert known, start + rest
