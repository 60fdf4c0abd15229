"""Flags for a picture of one's own, which --show edits, and what does not go together there."""

from pathlib import Path
from typing import Any

from command_line.defaults import FIGURES
from command_line.flags import SHOW, Arguments, Parser, Resuming
from command_line.values import integer, number

EDITS = ("inpaint", "vary", "reconstruct", "invert")
INPAINTING_STEPS = 100  # of ddpm; each is done --resampling times
STRENGTHS = [0.3, 0.5, 0.8]  # of --vary
OF_ONE = {"mask": "inpaint", "resampling": "inpaint", "strength": "vary"}  # flags of one edit


# fmt: off
def editing_flags(parser: Parser, latents: bool) -> None:
    """latents: whether there is an autoencoder whose reconstruction can be looked at."""
    title = "editing a picture of your own, of any size, with --show"
    group = parser.group(title, frozenset({SHOW}), Resuming.FORGOTTEN)
    edit = group.either()
    edit.add("--inpaint",
        "make a part of this picture anew, to fit the rest (RePaint, Lugmayr et al. 2022); one "
        "result per seed",
        metavar="IMAGE")
    text = "make pictures like this one (SDEdit, Meng et al. 2022), one per seed"
    edit.add("--vary", text, metavar="IMAGE")
    if latents:
        text = "encode and decode this picture: what the autoencoder makes of it, with its PSNR"
        edit.add("--reconstruct", text, metavar="IMAGE")
    edit.add("--invert",
        "find the noise that --sampler ddim makes this picture of, and go back, with the PSNR; of "
        "two pictures: a path between them, through their noises",
        metavar="IMAGE", nargs="+")
    text = "for --inpaint, of the picture's shape: white is made anew, black is kept"
    group.add("--mask", text, metavar="IMAGE")
    text = "for --inpaint: times that each step is done; more fit better"
    group.add("--resampling", text, integer(1, 1000), "N", 10)
    group.add("--strength",
        "for --vary: how much noise is added, as a share of the steps; at 1 nothing of the picture "
        "is left",
        number(0, 1, open_low=True), "S", nargs="+", otherwise=" ".join(map(str, STRENGTHS)))


# fmt: on
def check_editing(parser: Parser, values: dict, given: frozenset[str]) -> str | None:
    """Which of EDITS was typed. Ends with an error where a flag is missing or does not go with it;
    puts defaults of its own into values."""
    edit = next((name for name in EDITS if name in given), None)
    for flag, needed in OF_ONE.items():
        if flag in given and edit != needed:
            parser.error(f"--{flag} goes with --{needed}")
    if edit is None:
        return None
    parser.refuse(given & FIGURES, edit)
    if edit == "invert" and len(values["invert"]) == 1:
        parser.refuse(given & {"num_images"}, edit)

    # What each of them needs.
    if edit == "inpaint":
        if values["mask"] is None:
            parser.error("--inpaint needs --mask, a picture that is white where it is made anew")
        if values["sampler"] == "dpm++":
            parser.error("--inpaint does each step anew, but dpm++ builds on the step before")
        if values["sampler"] == "ddpm":
            values["sampling_steps"] = values["sampling_steps"] or INPAINTING_STEPS
    if edit == "vary":
        values["strength"] = values["strength"] or STRENGTHS
    if edit == "invert":
        if len(values["invert"]) > 2:
            parser.error("--invert takes one picture, or two for a path between them")
        if "sampler" in given and values["sampler"] != "ddim":
            parser.error(f"--invert is of --sampler ddim, not of {values['sampler']}")
        values["sampler"] = "ddim"
    return edit


def edit_of(args: Arguments, fig: str) -> dict[str, Any]:
    """What is to be edited and how, as edit_picture takes it; nothing where no edit was typed. fig:
    the folder of figures."""
    edit = next((name for name in EDITS if name in args.given), None)
    if edit is None:
        return {}
    own = [flag for flag, needed in OF_ONE.items() if needed == edit]
    sheet = args.out if args.out.lower().endswith(".png") else f"{fig}/{edit}.png"
    return {"sheet": Path(sheet), **{name: getattr(args, name) for name in [edit, *own]}}
