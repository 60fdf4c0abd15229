"""What our networks and schedules are called in diffusers: the tables that reading its folders and
writing them share. A config of diffusers is what *_said gives, and the fields of ours by its names.
"""

from collections.abc import Collection, Sequence
from typing import Any

from models.scheduler import SchedulerConfig

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"
AUTOENCODER_FIELDS = {  # ours: diffusers'
    "image_channels": "in_channels",
    "latent_channels": "latent_channels",
    "channels": "block_out_channels",
    "blocks": "layers_per_block",
    "groups": "norm_num_groups",
}
UNET_FIELDS = {
    "in_channels": "in_channels",
    "channels": "block_out_channels",
    "blocks": "layers_per_block",
    "groups": "norm_num_groups",
    "dropout": "dropout",
}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}
BETAS: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


def autoencoder_said(levels: int, image_channels: object) -> dict[str, Any]:
    """What a config of diffusers says of every AutoencoderKL of ours."""
    return {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "act_fn": "silu",
        "out_channels": image_channels,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    }


def unet_said(
    channels: Sequence[object], in_channels: object, attention: Collection[int]
) -> dict[str, Any]:
    """The same of every UNet with these widths, and attention at these levels."""
    kinds = ["AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(len(channels))]
    return {
        "_class_name": "UNet2DModel",
        "down_block_types": kinds,
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
        "add_attention": len(channels) - 1 in attention,
        "attention_head_dim": channels[0] if attention else 8,  # 8: what diffusers has otherwise
        "out_channels": in_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "time_embedding_dim": None,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "mid_block_scale_factor": 1,
        "downsample_padding": 1,
        "downsample_type": "conv",
        "upsample_type": "conv",
        "act_fn": "silu",
        "attn_norm_num_groups": None,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "default",
        "class_embed_type": None,
        "num_class_embeds": None,
    }


def scheduler_said(config: SchedulerConfig) -> dict[str, Any]:
    """The same of a schedule: all that its class says of the noise, and of T as "trailing" steps,
    which begin at T-1. sigma_t = sqrt(beta_t) is fixed_large."""
    return {
        "num_train_timesteps": config.num_steps,
        **BETAS[config.schedule],
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "prediction_type": PREDICTIONS[config.prediction],
        "clip_sample": config.clip_x0,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "sample_max_value": 1.0,
        "timestep_spacing": "trailing",
        "variance_type": "fixed_large",
    }
