"""Which autoencoders a denoiser goes with: all that have the encoder of its latents.

So a decoder may be trained further (train_encoder.py --freeze-encoder), and every denoiser of its
latents gains.
"""

from contextlib import suppress
from pathlib import Path

from common.errors import UserError
from data import tensor_files
from models.autoencoder import AutoencoderKL
from training.checkpoint import checkpoints_in, fingerprint, load_model

ENCODER = "encoder.", "quant_conv."  # the names of its tensors begin with these


def encoder_id(autoencoder: AutoencoderKL) -> str:
    """SHA-256 over the tensors that make latents of images, as 64 hex digits."""
    state = autoencoder.state_dict()
    return tensor_files.fingerprint({k: v for k, v in state.items() if k.startswith(ENCODER)})


def goes_with(autoencoder: AutoencoderKL, wanted: str) -> bool:
    """Whether that is its encoder_id or, as the first denoisers have it, the id of all of it."""
    return wanted in (encoder_id(autoencoder), fingerprint(autoencoder))


def find_autoencoder(folder: str | Path, wanted: str) -> Path | None:
    """The newest autoencoder checkpoint in folder that goes with a denoiser which wants this id, or
    None."""
    for path in checkpoints_in(folder):
        with suppress(UserError):  # no autoencoder, or one that cannot be read
            if goes_with(load_model(path, "AutoencoderKL")[0], wanted):
                return path
    return None


def refusal(denoiser: str, wanted: str, encoder: str | Path, autoencoder: AutoencoderKL) -> str:
    """The sentence for a denoiser and an autoencoder that do not belong together."""
    return (
        f"{denoiser} was trained with autoencoder {wanted[:8]}, but {encoder} is "
        f"{encoder_id(autoencoder)[:8]}; pass the matching --encoder"
    )
