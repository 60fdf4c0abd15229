"""The arrows between the rooms, and what may be imported where."""

import ast
import subprocess
import sys

import pytest
from helpers import ROOT

PACKAGES = ("common", "models", "data", "training", "generation")
SCRIPTS = ("mnist_diffusion", "train_encoder", "latent_diffusion")
GROUND = {"common"}  # on which all stand
ALLOWED = {
    "common": GROUND,
    "models": {"models"} | GROUND,
    "data": {"data"} | GROUND,
    "training": {"training", "models", "data"} | GROUND,
    "generation": {"generation", "training", "models", "data"} | GROUND,
}
RUNTIME = {"torch", "torchvision", "safetensors", "numpy", "matplotlib", "tqdm", "PIL"}


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


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_run_down_only(package):
    for path in (ROOT / package).glob("*.py"):
        ours = imports(path) & {*PACKAGES, *SCRIPTS, "benchmarks"}
        assert ours <= ALLOWED[package], f"{path.name} must not import {ours - ALLOWED[package]}"


def test_generation_is_given_no_flags():
    files = list((ROOT / "generation").glob("*.py"))
    assert files and not any({"command_line", "argparse"} & imports(path) for path in files)


def test_only_runtime_packages_are_imported():
    files = [p for package in PACKAGES for p in (ROOT / package).glob("*.py")]
    for path in [*files, *(ROOT / f"{script}.py" for script in SCRIPTS)]:
        foreign = imports(path) - set(sys.stdlib_module_names) - {*PACKAGES, "command_line"}
        assert foreign <= RUNTIME, f"{path.name} imports {foreign - RUNTIME}"


def test_only_figures_imports_matplotlib():
    files = [p for p in ROOT.glob("*/*.py") if p.parent.name in PACKAGES] + list(ROOT.glob("*.py"))
    assert {p.name for p in files if "matplotlib" in imports(p)} == {"figures.py"}


def test_package_inits_are_empty():
    assert all((ROOT / package / "__init__.py").read_text() == "" for package in PACKAGES)


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


def test_importing_the_scripts_does_nothing(tmp_path):
    """Importing has no side effect: it parses nothing, writes nothing."""
    code = f"import sys; sys.path.insert(0, r'{ROOT}')\n"
    code += "\n".join(f"import {script}; assert {script}.main" for script in SCRIPTS)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert list(tmp_path.iterdir()) == []
