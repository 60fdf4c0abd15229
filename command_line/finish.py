"""After parsing: what does not go together is refused, and defaults that depend on other flags are
filled in."""

import math
import os
import time
from pathlib import Path

from command_line.defaults import (
    ASKED,
    EVALUATED_STEPS,
    FIGURES,
    IDLE,
    NUM_IMAGES,
    DenoiserDefaults,
)
from command_line.editing import EDITS, check_editing
from command_line.flags import EVALUATE, TRAIN, Arguments, Parser
from common.choices import PICTURES, SAMPLERS


def finish(
    parser: Parser, values: dict, given: frozenset[str], denoiser: DenoiserDefaults | None = None
) -> Arguments:
    """The Arguments: what does not go together is refused, and defaults that depend on other
    flags are filled in."""
    mode = Arguments(values, given, parser.flags).mode
    parser.refuse(frozenset(name for name in given if mode not in parser.flags[name].modes), mode)
    if values.get("export") is not None:
        parser.refuse(given - {"show", "export", "encoder", "device"}, "export")
    if mode == TRAIN and values["resume"] is None and values["name"] is None:
        # Runs that a loop starts in the same second are told apart by their processes.
        values["name"] = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    limit = values.get("time_limit")  # counted from here: caching and importing take time too
    values["deadline"] = limit and time.monotonic() + 60 * limit
    if mode != TRAIN and denoiser is not None:
        edit = check_editing(parser, values, given)
        _check_sampling(parser, values, given)
        figure = edit or next(iter(given & FIGURES), None)
        if figure:
            parser.refuse(given & IDLE.get(figure, frozenset()), figure)
        values["num_images"] = _num_images(parser, values, given, figure, denoiser)
        values |= _steps_and_out(parser, values, given, figure, denoiser)
    return Arguments(values, given, parser.flags)


def _check_sampling(parser: Parser, values: dict, given: frozenset[str]) -> None:
    """End with an error where a flag of the sampler or of a condition would do nothing."""
    sampler = values["sampler"]
    if "eta" in given and "eta" not in SAMPLERS[sampler].settings:
        parser.error(f"--eta is for --sampler ddim, and does nothing in {sampler}")
    silent = {"dpm++": True, "ddim": values["eta"] == 0}.get(sampler, False)
    if "sigma_scale" in given and silent:
        parser.error(f"--sigma-scale scales the noise of each step, but {sampler} adds none")
    low, high = values["guidance_interval"] or (0, 0)
    if low > high:
        parser.error(f"--guidance-interval from {low} to {high} is empty")
    if "guidance_interval" in given and values["guidance"] == 1:
        parser.error("--guidance-interval needs --guidance other than 1, which guides nothing")
    if values["show"] is not None and "guidance" in given and not given & ASKED:
        parser.error(f"--guidance needs --{' or --'.join(sorted(ASKED & parser.flags.keys()))}")


def _num_images(
    parser: Parser, values: dict, given: frozenset[str], figure: str | None,
    denoiser: DenoiserDefaults,
) -> int:  # fmt: skip
    """How many pictures: as typed, or what suits the mode; within what it can show."""
    asked = "label" if given & ASKED else ""
    mode = EVALUATE if values["evaluate"] is not None else figure or asked
    default, fewest, most = NUM_IMAGES.get(mode, (denoiser.num_images, 1, math.inf))
    count = values["num_images"] or default
    if count < fewest:
        parser.error(f"--{mode} needs --num-images {fewest} or more")
    if count > most:
        parser.error(f"--{mode} shows at most {most} pictures, --num-images asks for more")
    return count


def _steps_and_out(
    parser: Parser, values: dict, given: frozenset[str], figure: str | None,
    denoiser: DenoiserDefaults,
) -> dict:  # fmt: skip
    """The sampling steps and the place of what is made, where they were not typed."""
    steps, out = values["sampling_steps"], values["out"]
    if values["evaluate"] is not None:
        if values["sampler"] == "ddpm":
            steps = steps or EVALUATED_STEPS
        named = _named_by_settings({**values, "sampling_steps": steps}, given)
        out = out or f"{denoiser.fig}/evaluation/{named}"
        if Path(out).suffix.lower() in PICTURES:
            parser.error(f"--evaluate makes a folder of pictures, but --out is {out}")
    out = out or f"{denoiser.fig}/{figure or 'generated'}.png"
    is_folder = figure in EDITS and Path(out).suffix.lower() not in PICTURES
    if figure and not is_folder and not out.lower().endswith(".png"):
        parser.error(f"--{figure} makes a .png, but --out is {out}")
    return {"sampling_steps": steps, "out": out}


def _named_by_settings(values: dict, given: frozenset[str]) -> str:
    """A folder's name for the samples of --evaluate: the checkpoint's, and the sampler's flags."""
    choice = SAMPLERS[values["sampler"]]
    name = f"{Path(values['evaluate']).stem}-{values['sampler']}"
    name += str(values["sampling_steps"] or choice.steps)
    name += "".join(f"-{k}{values[k]:g}" for k in (*choice.settings, "guidance") if k in given)
    return name + "".join(f"-t{t}" for t in values["guidance_interval"] or ())
