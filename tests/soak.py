"""Kill trainings and cachings at random times, go on, and compare with what was left alone.

python3 tests/soak.py [--kills 200] [--seed 0] [--minutes 20]

`make soak` runs it, then the fuzz tests with many examples. Each trial is a run in a folder of its
own that is killed (kill -9) one to three times, gone on with as a user would, and must end as the
undisturbed run did: the same files, names and bytes, and nothing else left behind. All runs are
forks of this process, which has imported torch once: so a trial takes seconds.
"""

import argparse
import json
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from helpers import write_images, write_mnist  # noqa: E402

import generation.output  # noqa: E402, F401 (matplotlib too is imported once)
from training import denoiser  # noqa: E402

torch.set_num_threads(1)  # the threads of a pool would not be there in a fork
denoiser.PREVIEW_STEPS = 2  # figures are looked at elsewhere
TINY = ["--channels", "8", "--batch", "4", "--device", "cpu", "--precision", "fp32", "--name", "a"]
STAGES = {
    "digits": ("mnist", ["mnist_diffusion.py", "--train", "--steps", "12", *TINY]),
    "keep": (
        "mnist",
        ["mnist_diffusion.py", "--train", "--steps", "12", "--save-every", "2", "--keep", "2",
         "--lr-schedule", "trapezoid", *TINY],
    ),
    "encoder": (
        "autoencoder",
        ["train_encoder.py", "--data", "pictures", "--size", "16x16", "--steps", "8", *TINY],
    ),
    "latents": (
        "denoiser",
        ["latent_diffusion.py", "--train", "--encoder", "encoder.safetensors", "--mirror",
         "--steps", "8", *TINY],
    ),
}  # fmt: skip


def start(folder, command):
    """The number of a forked process that runs a script in folder, what it says in log.txt."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = command
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os._exit(status)


def finish(pid, seconds=None):
    """The status of a process after at most so many seconds; None when it had to be killed."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        done, status = os.waitpid(pid, 0 if deadline is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def go_on(stage, folder):
    """What a user types who finds the folder as it is."""
    task, command = STAGES[stage]
    if not (folder / f"checkpoints/{task}/a.state").exists():
        return command  # its name is free
    resume = [command[0], *(["--train"] * ("--train" in command)), "--resume", "a"]
    return [*resume, *command[command.index("--device") : command.index("--name")]]


def left(folder):
    """{path: content} of all that a run has made, without the speed of its records."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.name == "metrics.jsonl":
            records = map(json.loads, content.splitlines())
            content = [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]
        if path.name != "log.txt" and path.suffix != ".tmp":  # those go after a day
            found[path.relative_to(folder).as_posix()] = content
    return found


def prepare(folder):
    """The data and the encoder of all stages, in folder/given."""
    given = folder / "given"
    write_mnist(given / "data", train=24, test=4)
    write_images(given / "pictures", 12, (16, 16))
    made = shutil.copytree(given, folder / "made")
    assert finish(start(made, STAGES["encoder"][1])) == 0, (made / "log.txt").read_text()
    encoder = max((made / "checkpoints/autoencoder").glob("a_epoch*"))
    shutil.copy(encoder, given / "encoder.safetensors")
    return given


def trial(stage, given, folder, wanted, seconds, rng):
    """One run that is killed and gone on with; (kills, the complaint or None). seconds: {stage:
    how long a run takes}, corrected where one ends before its time."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(given, folder)
    kills = 0
    for _ in range(rng.randint(1, 3)):
        at = time.monotonic()
        status = finish(start(folder, go_on(stage, folder)), rng.uniform(0, seconds[stage]))
        if status is not None:
            seconds[stage] = (seconds[stage] + time.monotonic() - at) / 2
            break
        kills += 1
    status = finish(start(folder, go_on(stage, folder)), 120)
    if status != 0:
        return kills, f"ends with status {status}: {(folder / 'log.txt').read_text()[-500:]}"
    got = left(folder)
    wrong = sorted(k for k in got.keys() | wanted.keys() if got.get(k) != wanted.get(k))
    return kills, f"differs in {wrong}" if wrong else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="in all (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the times (default 0)")
    parser.add_argument("--minutes", type=float, default=20, help="at most (default 20)")
    args = parser.parse_args()
    rng, began, kills, trials, bad = random.Random(args.seed), time.monotonic(), 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = prepare(folder)

        # What is to be, and how long it takes.
        wanted, seconds = {}, {}
        for stage, (_, command) in STAGES.items():
            alone = shutil.copytree(given, folder / stage)
            at = time.monotonic()
            assert finish(start(alone, command)) == 0, (alone / "log.txt").read_text()
            wanted[stage], seconds[stage] = left(alone), time.monotonic() - at

        while kills < args.kills and time.monotonic() - began < 60 * args.minutes:
            stage = list(STAGES)[trials % len(STAGES)]
            made, complaint = trial(stage, given, folder / "trial", wanted[stage], seconds, rng)
            kills, trials = kills + made, trials + 1
            if complaint:
                bad += 1
                print(f"trial {trials}, {stage}, {made} kills: {complaint}", flush=True)
    took = time.monotonic() - began
    print(
        f"{kills} kills in {trials} runs, {bad} of which did not end as undisturbed; {took:.0f} s"
    )
    sys.exit(bool(bad) or kills < args.kills)


if __name__ == "__main__":
    main()
