"""A check of a machine: its parts' processes and time, and the report of what they came to."""

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.report import ROOT, Figure, Report
from common.machine import cores

GRACE = 15  # seconds from the request to stop until a process is killed
RESERVE = 5 + GRACE  # seconds for the last part's end and the report
TAIL = 30  # lines of a failed part's output in the report

# A script as a user runs it, which says at its end how much memory it took.
SCRIPT = f"""
import atexit, resource, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
sys.argv = sys.argv[1:]
def say():
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        print("peak memory", torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        print("peak memory", unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
atexit.register(say)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class SkippedError(Exception):
    """Why a part was left out."""


class FailedError(Exception):
    """What failed in a part."""


@dataclass
class Result:
    """What a part came to. status: passed, failed, skipped, or cut: stopped at the end of its time
    with something to show. notes: sentences. pictures: paths in the report's folder."""

    name: str
    status: str = "passed"
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    figures: list[dict] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)


@dataclass
class Check:
    """What the parts share. work: the temporary folder. until: end of the present part, by
    time.monotonic(). made: {what: checkpoint} of the parts before."""

    device: str
    short: bool
    data_root: Path | None
    out: Path
    work: Path
    until: float = 0.0
    made: dict[str, Path] = field(default_factory=dict)
    result: Result = field(default_factory=lambda: Result(""))

    @property
    def left(self):
        """Seconds of the present part."""
        return self.until - time.monotonic()

    def run(self, *command, cwd=ROOT, **env):
        """(whether it came to its end, its new output) of a process, whose time is the part's.
        Raises FailedError for another status than 0."""
        log = self.out / f"{self.result.name}.log"
        start = log.stat().st_size if log.exists() else 0
        env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")} | env
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)], cwd=cwd, env={**env, "PYTHONUNBUFFERED": "1"},
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            ended = True
            try:
                process.wait(max(1.0, self.left))
            except BaseException as error:
                stop(process)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                ended = False
        with log.open("rb") as file:
            file.seek(start)
            output = file.read().decode(errors="replace").replace("\r", "\n")
        if ended and process.returncode:
            raise FailedError(f"status {process.returncode}")
        if not ended:
            self.result.status = "cut"
        return ended, output

    def script(self, name, *flags):
        """The output of one of the project's scripts, run in the temporary folder."""
        machine = "--device", self.device
        _, output = self.run("-c", SCRIPT, ROOT / name, *flags, *machine, cwd=self.work)
        found = re.findall(r"^peak memory (\d+)(?: (\d+))?$", output, flags=re.MULTILINE)
        if found:
            used, reserved = found[-1]
            note = f"{int(reserved) / 1e9:.2f} GB reserved" if reserved else "of the process"
            self.add(f"{name}, peak memory", int(used) / 1e9, "GB", note=note)
        return output

    def add(self, name, value, unit, target="", note=""):
        """A figure of the present part, which replaces an earlier one of this name."""
        figure = Figure(name, value, unit, target, note)
        others = [f for f in self.result.figures if f["name"] != name]
        self.result.figures = [*others, {**asdict(figure), "met": figure.met}]


def stop(process):
    """End a process and those that it started: asked first, so that it can say what it has."""
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


# ---- All parts, and the report ------------------------------------------------------------------


def run_parts(check, parts, seconds):
    """The Results of parts: {name: (weight, function of the Check)}, in their order, within so many
    seconds. A part gets its weight's share of what is left. A failure stops no other part; the
    report is written after each."""
    end, results = time.monotonic() + seconds - RESERVE, []
    weights = [weight for weight, _ in parts.values()]
    about = machine(check.device)
    for i, (name, (_, part)) in enumerate(parts.items()):
        began = time.monotonic()
        result = check.result = Result(name)
        check.until = began + max(0.0, end - began) * weights[i] / sum(weights[i:])
        print(f"{end - began:5.0f} s left: {name}, at most {check.left:.0f} s", flush=True)
        try:
            part(check)
        except SkippedError as error:
            result.status = "skipped"
            result.notes.append(str(error))
        except Exception as error:  # whatever it is, the others go on
            result.status = "failed"
            result.notes.append(f"{type(error).__name__}: {error}")
            log = check.out / f"{name}.log"
            text = log.read_text(errors="replace") if log.exists() else ""
            lines = [line for line in re.split("[\r\n]", text) if line.strip()]
            result.tail = lines[-TAIL:]
        result.seconds = time.monotonic() - began
        results.append(result)
        notes = "".join(f"; {note}" for note in result.notes)
        print(f"{end - time.monotonic():5.0f} s left: {name} {result.status}{notes}", flush=True)
        write_report(check.out, about, results)
    return results


def machine(device):
    """{what: value} of the machine and its software."""
    about = {"device": device, "cores": cores(), "torch": torch.__version__}
    about |= {"Python": platform.python_version(), "system": platform.platform()}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        about |= {"GPU": gpu.name, "GPUs": torch.cuda.device_count(), "CUDA": torch.version.cuda}
        about |= {"GPU memory": f"{gpu.total_memory / 1e9:.1f} GB", "driver": driver()}
        about |= {"compute capability": f"{gpu.major}.{gpu.minor}"}
    return about


def driver():
    """The version of NVIDIA's driver, as its own tool has it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (done.stdout.splitlines() or ["unknown"])[0]


def write_report(out, about, results):
    """report.json and report.md in folder out."""
    found = {"machine": about, "parts": [asdict(result) for result in results]}
    (out / "report.json").write_text(json.dumps(found, indent=1))
    lines = ["# Check of a GPU", "", "| machine | |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in about.items()]
    lines += ["", "| part | status | seconds | |", "| --- | --- | --- | --- |"]
    for r in results:
        status = f"**{r.status}**" if r.status == "failed" else r.status
        lines.append(f"| {r.name} | {status} | {r.seconds:.0f} | {'; '.join(r.notes)} |")
    report = Report()
    for figure in (f for r in results for f in r.figures):
        report.figures.append(Figure(**{k: v for k, v in figure.items() if k != "met"}))
    if report.figures:
        lines += ["", report.table()]
    for path in (path for r in results for path in r.pictures):
        lines += ["", f"{path}:", "", f"![{path}]({path})"]
    for r in results:
        if r.tail:
            lines += ["", f"The end of {r.name}.log:", "", "```", *r.tail, "```"]
    (out / "report.md").write_text("\n".join(lines) + "\n")
