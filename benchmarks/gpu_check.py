"""All that a GPU has to show, in one command of 9 minutes: python3 -m benchmarks.gpu_check.

Tests on the device, the benchmarks with the GPU's targets, and a short training of each stage with
its pictures. Each part has its share of the time that is left and is cut where that is over, so a
slower GPU shows less, and not nothing. What came out is in OUT/report.md and OUT/report.json, each
part's output in OUT/PART.log. All is made in a temporary folder: checkpoints/ and fig/ stay as they
are. Status 1 where a part failed; a target that was missed is told and is no failure.
"""

import argparse
import json
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from benchmarks.check import GRACE, Check, FailedError, SkippedError, run_parts
from benchmarks.pipeline import draw_files
from command_line.defaults import CELEBA_SIZE
from common.errors import UserError
from data.celeba import find_celeba
from training.records import read_metrics
from training.runtime import Runtime

MINUTES, SHORT_MINUTES = 9, 8
WARM_UP, SHORT_WARM_UP = 40, 8  # steps of a first training, which passes all phases of the GAN
CELEBA_IMAGES, SHORT_IMAGES = 8000, 40  # pictures that are learnt
SHORT_TRAINING = ["--batch", "4", "--channels", "8"]

# ---- The parts ----------------------------------------------------------------------------------


def tests(check):
    """The tests that take a device."""
    more = ["-k", "draws or sent or average"] if check.short else []
    _, output = check.run(
        "-m", "pytest", "-m", "device", "-p", "no:cacheprovider", "--tb=short", *more,
        "tests/test_device.py", TEST_DEVICE=check.device,
    )  # fmt: skip
    counts = re.findall(r"^\d+ passed.*$", output, flags=re.MULTILINE)
    marks = "".join(re.findall(r"^[.sFE]+(?= |$)", output, flags=re.MULTILINE))
    check.result.notes += counts or [f"{marks.count('.')} passed until the time was over"]
    if "F" in marks or "E" in marks or "." not in marks:
        raise FailedError("a test failed, or none came to its end")


def benchmark(*names):
    """A part that runs these of python3 -m benchmarks."""

    def part(check):
        root = ["--data-root", check.data_root] if has_celeba(check) else []
        machine = "--device", check.device, "--quick"
        _, output = check.run("-m", "benchmarks", *names, *machine, *root)
        lines = [line for line in output.splitlines() if line.startswith('{"name"')]
        check.result.figures += [json.loads(line) for line in lines]
        missed = [f["name"] for f in check.result.figures if f["met"] is False]
        if missed:
            check.result.notes.append(f"targets missed: {'; '.join(missed)}")
        if not lines:
            raise FailedError("there was not time enough for a figure")

    return part


def digits(check):
    """MNIST's denoiser."""
    root = check.data_root
    if root is None or not (root / "MNIST" / "raw").is_dir():
        raise SkippedError("there is no MNIST/raw in the data root")
    train(check, "mnist_diffusion.py", "mnist", "--train", "--data-root", root)


def encoder(check):
    """An autoencoder, through all phases of its GAN."""
    if check.short:
        folder = check.work / "pictures"
        draw_files(folder, SHORT_IMAGES)
        flags = ["--data", folder, "--size", "16x16"]
    elif has_celeba(check):
        flags = ["--data", "celeba", "--data-root", some_of_celeba(check)]
    else:
        flags = ["--data", "synthetic"]
        check.result.notes.append("there is no CelebA in the data root: of drawn faces")
    if not check.short:
        flags += ["--size", "x".join(map(str, CELEBA_SIZE))]
    last = train(check, "train_encoder.py", "autoencoder", *flags)
    if "psnr_ema" in last:
        check.add("autoencoder, validation PSNR", last["psnr_ema"], "dB")
    note = f"the GAN's weight was {last['gan_weight']:.2g} at the end, after {last['step']} steps"
    check.result.notes.append(note)


def latent_denoiser(check):
    """The latents of that autoencoder's images, and a denoiser of them."""
    if "autoencoder" not in check.made:
        raise SkippedError("there is no autoencoder")
    train(check, "latent_diffusion.py", "denoiser", "--train", "--encoder",
          check.made["autoencoder"])  # fmt: skip


def pictures(check):
    """Faces and digits of the denoisers that there are."""
    if not {"mnist", "denoiser"} & check.made.keys():
        raise SkippedError("there is no denoiser")
    if "denoiser" in check.made:
        encoder = "--encoder", check.made["autoencoder"]
        show(check, "latent_diffusion.py", "denoiser", *encoder)
    if "mnist" in check.made:
        show(check, "mnist_diffusion.py", "mnist")


def train(check, script, task, *flags):
    """The newest metrics of a training as long as the part's time allows; its speed, memory and
    figures go to the report. A short one goes before, which passes all phases and gives the speed.
    """
    more = SHORT_TRAINING if check.short else []
    warm_up = SHORT_WARM_UP if check.short else WARM_UP
    began = time.monotonic()
    check.script(script, *flags, *more, "--name", "first", "--steps", warm_up)
    if not checkpoints(check, task, "first"):
        raise FailedError(f"{task} was not trained in its time")
    check.made[task] = checkpoints(check, task, "first")[-1]
    output = (check.out / f"{check.result.name}.log").read_text(errors="replace")
    batch = int(re.search(r"steps 1 to \d+ of (\d+) images", output)[1])
    a_second = images_per_second(check, task, "first")[0] / batch
    overhead = time.monotonic() - began - warm_up / a_second

    # Seven tenths of what the speed allows, for figures are drawn too. Where there is no time for
    # it, or it is stopped before its first step, the short one is what there is.
    name, seconds = "first", check.left - min(overhead, check.left / 3)
    if check.left > 2 * GRACE:
        steps = 2 * warm_up if check.short else max(warm_up, int(0.7 * a_second * seconds))
        limit = "--time-limit", max(0.05, (check.left - GRACE) / 60)
        check.script(script, *flags, *more, "--name", "check", "--steps", steps, *limit)
        name = "check" if checkpoints(check, task, "check") else "first"
    if name == "first":
        check.result.status = "cut"
        check.result.notes.append(f"no time for more than the first {warm_up} steps")
    check.made[task] = checkpoints(check, task, name)[-1]
    speed, last = images_per_second(check, task, name)
    check.add(f"{task}, training", speed, "images/s", note=f"batch {batch}, {last['step']} steps")
    keep(check, task, *(check.work / "fig" / task / name).glob("*.png"))
    return last


def images_per_second(check, task, name):
    """(median of the second half of a run's records, the newest value of each key)."""
    records = read_metrics(check.work / "fig" / task / name / "metrics.jsonl", name)
    if not records:
        raise FailedError(f"no step of {task} was recorded in its time")
    speeds = [record["images_per_second"] for record in records[len(records) // 2 :]]
    newest_of_each = {key: value for record in records for key, value in record.items()}
    return statistics.median(speeds), newest_of_each


def checkpoints(check, task, name):
    """Those of a run, the newest last."""
    found = (check.work / "checkpoints" / task).glob(f"{name}_*.safetensors")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def show(check, script, task, *flags):
    """Pictures of a denoiser: by its default sampler, in short by the fastest."""
    more = ["--sampler", "dpm++", "--sampling-steps", "4", "--num-images", "4"]
    began, out = time.monotonic(), check.work / f"{task}.png"
    check.script(script, "--show", check.made[task], *flags, "--out", out,
                 *(more if check.short else []))  # fmt: skip
    if not out.exists():
        raise FailedError("no picture was made in its time")
    check.add(f"{script} --show", time.monotonic() - began, "s", note="from start to picture")
    keep(check, task, out)


def keep(check, task, *paths):
    """Copy pictures to the report's folder."""
    for path in paths:
        target = check.out / "pictures" / f"{task}-{path.name}"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        check.result.pictures.append(str(target.relative_to(check.out)))


def has_celeba(check):
    """Whether CelebA is in the data root; nothing is downloaded."""
    names = "img_align_celeba", "img_align_celeba.zip"
    root = check.data_root
    return root is not None and any((root / "celeba" / name).exists() for name in names)


def some_of_celeba(check):
    """A data root with the first pictures of CelebA, so that caching them takes seconds."""
    files, splits = find_celeba(check.data_root)
    folder = check.work / "data" / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True, exist_ok=True)
    names = splits["train"][:CELEBA_IMAGES]
    if not files.is_zip:
        for name in names:
            shutil.copyfile(files.path / name, folder / Path(name).name)
        return folder.parent.parent
    with zipfile.ZipFile(files.path) as archive:
        for name in names:
            (folder / Path(name).name).write_bytes(archive.read(name))
    return folder.parent.parent


PARTS = {  # name: (seconds on a GPU, function)
    "tests": (50, tests),
    "steps": (85, benchmark("steps")),
    "peak": (90, benchmark("peak")),
    "draws": (20, benchmark("draws")),
    "caching": (35, benchmark("caching")),
    "digits": (40, digits),
    "encoder": (100, encoder),
    "denoiser": (70, latent_denoiser),
    "pictures": (30, pictures),
}
SHORT_PARTS = {  # on a CPU
    "tests": (40, tests),
    "caching": (100, benchmark("caching")),
    "digits": (50, digits),
    "encoder": (60, encoder),
    "denoiser": (60, latent_denoiser),
    "pictures": (50, pictures),
}


def main(argv=None, parts=PARTS):
    """The number of parts that failed. parts: as PARTS."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("only", nargs="*", choices=[*parts, []], help=", ".join(parts))
    text = "cuda, mps or cpu; of several GPUs, CUDA_VISIBLE_DEVICES chooses one"
    parser.add_argument("--device", default="cuda", help=text)
    text = "where MNIST/ and celeba/ are (default: drawn faces, and no digits)"
    parser.add_argument("--data-root", type=Path, metavar="DIR", help=text)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), metavar="DIR",
                        help="where the report goes (default: gpu-check)")  # fmt: skip
    parser.add_argument("--minutes", type=float, help=f"for all (default: {MINUTES})")
    text = f"a rehearsal with small networks, of at most {SHORT_MINUTES} minutes"
    parser.add_argument("--short", action="store_true", help=text)
    args = parser.parse_args(argv)
    try:
        print(Runtime(args.device), flush=True)
    except UserError as error:
        parser.error(str(error))

    # The parts, in a folder that is gone afterwards.
    out = args.out.resolve()
    shutil.rmtree(out / "pictures", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    for log in out.glob("*.log"):
        log.unlink()
    root = args.data_root and args.data_root.resolve()
    parts = SHORT_PARTS if args.short else parts
    chosen = {name: part for name, part in parts.items() if not args.only or name in args.only}
    minutes = args.minutes or (SHORT_MINUTES if args.short else MINUTES)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        check = Check(args.device, args.short, root, out, Path(work))
        results = run_parts(check, chosen, 60 * minutes)
    print(f"report: {out / 'report.md'}")
    return sum(result.status == "failed" for result in results)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no process may outlive this one
    sys.exit(min(1, main()))
