"""Checkpoints to give away: in half precision, with a card that says what they are.

python3 -m generation.release checkpoints/denoiser/DDD.safetensors --name faces64 \\
    --encoder checkpoints/autoencoder/AAA.safetensors --card terms="for research only"
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from generation.pipeline import load_denoiser
from models.autoencoder import AutoencoderKL
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
    if encoder is None:
        return [_write("mnist", name, model, {**facts, CARD: card})]

    # Both, of which the denoiser asks for the rounded encoder.
    autoencoder, known = load_model(encoder, "AutoencoderKL")
    if not goes_with(autoencoder, facts["autoencoder_id"]):
        raise UserError(refusal(path, facts["autoencoder_id"], encoder, autoencoder))
    facts = {**facts, CARD: card, "autoencoder_id": encoder_id(rounded(autoencoder))}
    written = [_write("autoencoder", name, autoencoder, {**known, CARD: card})]
    return [*written, _write("denoiser", name, model, facts)]


def rounded(autoencoder: AutoencoderKL) -> AutoencoderKL:
    """The same in float32, with the weights that float16 can hold."""
    return autoencoder.half().float()


def _write(kind: str, name: str, model: Any, facts: dict[str, Any]) -> Path:
    path = Path("checkpoints", kind, f"{name}.safetensors")
    if path.exists():
        raise UserError(f"{path} is there already; move it away, or choose another --name")
    save_model(path, model, for_others(facts), torch.float16)
    print(told("checkpoint", f"{path}, {file_size(path.stat().st_size)}"))
    return path


def for_others(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts without what means something on this machine only."""
    known = {k: v for k, v in facts.items() if k != "init"}
    return known | ({"data_root": "data"} if "data_root" in facts else {})  # where others have it


def tell_card(facts: dict[str, Any]) -> None:
    """Print what a checkpoint that was given away says of itself, a line each."""
    card = facts.get(CARD)
    for what, words in card.items() if type(card) is dict else ():
        print(told(str(what), str(words)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python3 -m generation.release", description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="the denoiser's checkpoint")
    parser.add_argument("--encoder", metavar="CKPT", help="its autoencoder's, if it has one")
    parser.add_argument("--name", required=True, help="of the new files")
    parser.add_argument("--card", action="append", default=[], metavar="WHAT=WORDS",
                        help="a line of the card; may be given several times")  # fmt: skip
    args = parser.parse_args()
    card = dict(line.partition("=")[::2] for line in args.card)
    try:
        release(args.checkpoint, args.encoder, args.name, card)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
