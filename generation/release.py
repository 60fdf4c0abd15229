"""Checkpoints to give away: in half precision, with a card that says what they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from generation.pipeline import load_denoiser
from training.checkpoint import load_facts, load_model, save_model
from training.first_stage import encoder_id, goes_with, refusal
from training.progress import file_size, told

CARD = "card"  # the fact that holds it: {what: words}


def release(path: str, encoder: str | None, name: str, card: dict[str, str]) -> list[Path]:
    """Write checkpoints/KIND/NAME.safetensors for the denoiser of this path and, where it denoises
    latents, for its autoencoder; their paths.

    The weights are rounded to float16, which changes pictures by less than what is seen. So the
    encoder gets another id, and the denoiser asks for that. Raises UserError where they do not
    belong together, or a file of this name is there.
    """
    space = load_facts(path).get("space", "")
    model, _, facts = load_denoiser(path, space)
    if (space == "latents") != (encoder is not None):
        raise UserError(f"{path} denoises {space}; give --encoder for latents, and only for them")
    networks: dict[str, tuple[Any, dict]] = {"denoiser" if encoder else "mnist": (model, facts)}
    if encoder:
        autoencoder, known = load_model(encoder, "AutoencoderKL")
        if not goes_with(autoencoder, facts["autoencoder_id"]):
            raise UserError(refusal(path, facts["autoencoder_id"], encoder, autoencoder))
        facts["autoencoder_id"] = encoder_id(autoencoder.half().float())
        networks["autoencoder"] = autoencoder, known

    paths = [Path("checkpoints", kind, f"{name}.safetensors") for kind in networks]
    if there := [str(path) for path in paths if path.exists()]:
        raise UserError(f"{there[0]} is there already; move it away, or choose another --name")
    for written, (network, known) in zip(paths, networks.values(), strict=True):
        save_model(written, network, {**for_others(known), CARD: card}, torch.float16)
        print(told("checkpoint", f"{written}, {file_size(written.stat().st_size)}"))
    return paths


def for_others(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts without what means something on this machine only: of a path to the data, the name."""
    known = {k: v for k, v in facts.items() if k != "init"}
    known |= {"data_root": "data"} if "data_root" in facts else {}  # where others have it
    return known | ({"data": Path(str(facts["data"])).name} if "data" in facts else {})


def tell_card(facts: dict[str, Any]) -> None:
    """Print what a checkpoint that was given away says of itself, a line each."""
    card = facts.get(CARD)
    for what, words in card.items() if type(card) is dict else ():
        print(told(str(what), str(words)))
