"""What the command line offers and the code behind it does, said once; no torch here."""

from dataclasses import dataclass

PICTURES = (".png", ".jpg", ".jpeg")  # endings of --out that mean one grid of pictures


@dataclass(frozen=True)
class SamplerChoice:
    """steps: calls of the network per picture by default; None: all T of the schedule.

    settings: names of what the sampler takes beside them.
    """

    steps: int | None
    settings: tuple[str, ...]


SAMPLERS = {
    "ddpm": SamplerChoice(None, ("sigma_scale",)),
    "ddim": SamplerChoice(50, ("eta", "sigma_scale")),
    "dpm++": SamplerChoice(20, ()),
}
