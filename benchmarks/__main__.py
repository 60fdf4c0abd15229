"""All benchmarks but the training curves: python3 -m benchmarks."""

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import pipeline, sampling, sharing, startup, steps
from benchmarks.report import Report
from training.runtime import Runtime

ALL = {
    "steps": lambda report, runtime, args: steps.denoiser_steps(report, runtime, args.quick),
    "peak": lambda report, runtime, args: steps.shares_of_peak(report, runtime, args.quick),
    "draws": lambda report, runtime, args: steps.draws(report, runtime),
    "floors": lambda report, runtime, args: steps.floors(report, runtime),
    "memory": lambda report, runtime, args: steps.memory(report, runtime),
    "caching": lambda report, runtime, args: pipeline.caching(
        report, runtime, args.data_root, args.quick
    ),
    "epoch": lambda report, runtime, args: pipeline.epoch(report, runtime),
    "streaming": lambda report, runtime, args: pipeline.streaming(report),
    "sampling": lambda report, runtime, args: sampling.sampling(report, runtime),
    "processes": lambda report, runtime, args: sharing.processes(report, runtime),
    "startup": lambda report, runtime, args: startup.startup(report, runtime),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    names = ", ".join(ALL)
    parser.add_argument("only", nargs="*", choices=[*ALL, []], help=f"{names} (default: all)")
    parser.add_argument(
        "--data-root", metavar="DIR", help="where celeba/ is (default: drawn faces)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16 or fp16")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and images")
    parser.add_argument("--out", metavar="FILE", help="also write the figures there, as JSON")
    args = parser.parse_args()
    runtime = Runtime(args.device, args.precision)
    report, began = Report(), time.monotonic()
    print(f"{runtime}; torch {torch.__version__}, Python {platform.python_version()}", flush=True)
    try:
        for name in args.only or ALL:
            ALL[name](report, runtime, args)
    finally:  # what was measured is not lost with what fails
        print(f"\n{report.table()}\n\n{(time.monotonic() - began) / 60:.1f} minutes, {runtime}")
        if args.out:
            Path(args.out).write_text(json.dumps([asdict(f) for f in report.figures], indent=1))


if __name__ == "__main__":
    main()
