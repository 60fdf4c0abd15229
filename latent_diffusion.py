"""Steps 2 to 4: cache the latents of a data set, train a denoiser on them, generate pictures.

python3 latent_diffusion.py --train --encoder checkpoints/autoencoder/AAA.safetensors
python3 latent_diffusion.py --show checkpoints/denoiser/DDD.safetensors \
    --encoder checkpoints/autoencoder/AAA.safetensors
python3 latent_diffusion.py --evaluate checkpoints/denoiser/DDD.safetensors
"""

from command_line import options

if __name__ == "__main__":
    ARGS = options.parse_latent()  # before torch is imported: --help answers at once

from dataclasses import asdict
from pathlib import Path

import torch

from common.errors import UserError
from data.images import open_images
from data.latents import MANIFEST, LatentDataset, LatentStats, cache_bytes, cache_id, cache_latents
from generation.evaluation import autoencoder_spaces, dataset_images, evaluate_denoiser
from generation.pipeline import Pipeline, load_denoiser, make_pictures
from generation.seeing import TrainingSet
from models.sizes import DENOISER_STRIDE, check_divides
from training import denoiser
from training.checkpoint import check_channels, find_by_fingerprint, fingerprint, load_model
from training.codec import LatentCodec
from training.progress import fact, file_size
from training.run import resume, same_data
from training.runtime import Runtime

CHANNEL_MULT = 1, 2, 4  # of the widths, level by level


def main(args):
    """Train, show or evaluate, as the arguments say."""
    if args.train:
        train(args)
    elif args.show is not None:
        show(args)
    else:
        evaluate(args)


def train(args):
    """Cache the latents if they are not there, then train the denoiser on them."""
    args, state = resume(args, "denoiser")
    torch.manual_seed(args.seed)
    runtime = Runtime(args)

    # Data: what the autoencoder was trained on, unless told otherwise; as whitened latents.
    autoencoder, trained_on = load_model(args.encoder, "AutoencoderKL")
    args.autoencoder_id = fingerprint(autoencoder)
    if state and state["settings"]["autoencoder_id"] != args.autoencoder_id:
        wanted = state["settings"]["autoencoder_id"]
        raise UserError(refusal(args.resume, wanted, args.encoder, args.autoencoder_id))
    autoencoder = runtime.place(autoencoder)
    args.size = tuple(args.size or trained_on["size"])
    check_divides(*args.size, DENOISER_STRIDE * autoencoder.stride)
    latents = cached_latents(args, state, runtime, autoencoder, trained_on)
    held_out = latents["valid"] if len(latents["valid"]) else latents["train"]
    valid = torch.arange(min(denoiser.NUM_VALID, len(held_out)))
    generator = torch.Generator().manual_seed(0)
    data = denoiser.DenoiserData(
        draw=lambda indices: runtime.send(latents["train"].draw(indices, runtime.device)),
        num_train=len(latents["train"]),
        valid=runtime.send(held_out.draw(valid, generator=generator)),
        codec=LatentCodec(autoencoder, latents["train"].stats, runtime),
    )

    # Network and schedule: two halvings; x0_hat is not clipped, because latents have no bounds.
    channels = autoencoder.config.latent_channels
    model, scheduler = denoiser.network_and_schedule(args, channels, CHANNEL_MULT, clip_x0=False)
    facts = {
        "space": "latents",
        "shape": list(data.valid.shape[1:]),
        "data": args.data,
        "data_root": args.data_root,
        "size": args.size,
        "scheduler": asdict(scheduler.config),
        "latent_stats": asdict(data.codec.stats),
        "autoencoder_id": args.autoencoder_id,
        "cache": args.data_id,
    }
    denoiser.train(
        args, state, runtime=runtime, model=model, scheduler=scheduler, data=data, facts=facts,
        kind="denoiser",
    )  # fmt: skip


def cached_latents(args, state, runtime, autoencoder, trained_on):
    """{"train": LatentDataset, "valid": ..} of the data, encoded now if they were not before."""
    if state is None:  # a resumed run has its own
        args.data = args.data or trained_on["data"]
        args.data_root = options.data_root(args, trained_on)
    splits = open_images(args.data, args.data_root, args.size)
    images = {split: splits[split] for split in ("train", "valid")}
    check_channels(args.encoder, autoencoder, images["train"])
    same_data(args, state, cache_id(args.autoencoder_id, images, args.mirror))
    folder = Path("encoded_img") / args.data_id
    shape = (autoencoder.config.latent_channels, *(n // autoencoder.stride for n in args.size))
    if not (folder / MANIFEST).is_file():
        size = file_size(cache_bytes(images, shape, args.mirror))
        count = (1 + args.mirror) * len(images["train"]) + len(images["valid"])
        what = f"encoding {count} images of {args.data} into {folder}: {size}"
        print(fact("latents", what), flush=True)

    @torch.no_grad()
    def encode(x):
        with runtime.autocast():
            return autoencoder.encode(runtime.send(x)).moments()

    about = {"data": args.data, "size": args.size, "autoencoder": args.encoder}
    about["autoencoder_id"] = args.autoencoder_id
    cache_latents(encode, images, shape, folder, args.mirror, runtime.workers, about)
    return {split: LatentDataset(folder, split) for split in images}


def show(args):
    """Generate pictures: sample latents, unwhiten them, decode."""
    pipeline, facts, _ = load(args, args.show)
    make_pictures(pipeline, lambda: cached_means(args.show, facts))


def evaluate(args):
    """Measure a denoiser's pictures against images that neither network was trained on."""
    pipeline, facts, trained_on = load(args, args.evaluate)
    data = args.data or facts.get("data", trained_on["data"])
    root = options.data_root(args, {**trained_on, **facts})
    splits = open_images(data, root, tuple(facts["size"]))
    check_channels(args.evaluate, pipeline.codec.autoencoder, splits["train"])
    held_out = "test" if "test" in splits else "valid"
    kind = {"test": "test", "valid": "validation"}[held_out]
    workers = pipeline.runtime.workers
    test = dataset_images(f"{data}'s {kind} images", splits[held_out], workers)
    train = dataset_images(f"{data}'s training images", splits["train"], workers)
    cached = (cache_folder(facts) / MANIFEST).is_file()  # else all but the nearest is measured
    training_set = cached_means(args.evaluate, facts) if cached else None
    spaces = autoencoder_spaces(pipeline.codec)
    evaluate_denoiser(pipeline, test, train, spaces, training_set)


def load(args, path):
    """(Pipeline of a denoiser's checkpoint, its facts, its autoencoder's facts).

    The autoencoder is args.encoder, or is looked for. Raises UserError where it is not found, or
    is not the one that the denoiser was trained with.
    """
    model, scheduler, facts = load_denoiser(path, "latents")
    wanted = facts["autoencoder_id"]
    encoder = args.encoder or find_by_fingerprint("checkpoints/autoencoder", wanted)
    if encoder is None:
        raise UserError(
            f"{path} was trained with autoencoder {wanted[:8]}, which is not in "
            "checkpoints/autoencoder; pass it as --encoder"
        )
    autoencoder, trained_on = load_model(encoder, "AutoencoderKL")
    if fingerprint(autoencoder) != wanted:
        raise UserError(refusal(path, wanted, encoder, fingerprint(autoencoder)))
    runtime = Runtime(args)
    model, autoencoder = runtime.place(model), runtime.place(autoencoder)
    codec = LatentCodec(autoencoder, LatentStats(**facts["latent_stats"]), runtime)
    return Pipeline(args, runtime, model, scheduler, facts["shape"], codec), facts, trained_on


def cached_means(path, facts):
    """The TrainingSet of a denoiser, from its cache; UserError where that is gone."""
    folder = cache_folder(facts)
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"--neighbours needs the latents that {path} was trained on, which are not in "
            f"{folder}; training a denoiser on the same autoencoder and data makes them again"
        )
    latents = LatentDataset(folder, "train")
    return TrainingSet(latents.means, len(latents))


def cache_folder(facts):
    """Where the latents that a denoiser was trained on are, or were."""
    return Path("encoded_img") / str(facts.get("cache"))


def refusal(denoiser, wanted, encoder, got):
    """The sentence for a denoiser and an autoencoder that do not belong together."""
    return (
        f"{denoiser} was trained with autoencoder {wanted[:8]}, but {encoder} is {got[:8]}; "
        "pass the matching --encoder"
    )


if __name__ == "__main__":
    options.run(main, ARGS)
