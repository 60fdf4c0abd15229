"""Steps 2 to 4: cache the latents of a data set, train a denoiser on them, generate pictures.

python3 latent_diffusion.py --train --encoder checkpoints/autoencoder/AAA.safetensors
python3 latent_diffusion.py --show checkpoints/denoiser/DDD.safetensors \
    --encoder checkpoints/autoencoder/AAA.safetensors
python3 latent_diffusion.py --export DIR --show checkpoints/denoiser/DDD.safetensors
python3 latent_diffusion.py --evaluate checkpoints/denoiser/DDD.safetensors
"""

from command_line import entry, parsers

if __name__ == "__main__":
    ARGS = entry.begin(parsers.parse_latent)  # before torch is imported: --help answers at once

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from command_line.defaults import FACES
from command_line.editing import edit_of
from command_line.flags import EVALUATE, SHOW, TRAIN, Arguments
from common.choices import NUM_STEPS
from common.errors import UserError
from common.launch import is_first
from data.batches import load_batches
from data.caching import cache_id
from data.images import open_images
from data.labels import read_labels
from data.latents import MANIFEST, LatentDataset, LatentStats
from generation.classifier import attribute_classifier
from generation.conditions import Guidance, all_asked, asked_for, labels_known
from generation.edited import edit_picture
from generation.evaluation_asked import measure_attributes
from generation.evaluation_denoiser import Reference, evaluate_denoiser, publish
from generation.export import export
from generation.image_sets import (
    autoencoder_spaces,
    dataset_images,
    imagenet_spaces,
    read_pictures,
)
from generation.output import fill_folder, make_pictures, picture_path
from generation.pipeline import Pipeline, load_beginning, load_denoiser
from generation.release import tell_card
from generation.seeing import TrainingSet
from models.autoencoder import AutoencoderKL
from models.scheduler import DDPMScheduler, SchedulerConfig
from models.sizes import DENOISER_STRIDE, check_divides
from models.unet import UNet
from training import denoiser, distributed
from training.beginning import (
    begin_run,
    denoiser_flags,
    facts_in,
    network_in,
    with_dropout,
    with_labels,
)
from training.checkpoint import check_channels, check_fields
from training.codec import LatentCodec
from training.conditions import use_labels
from training.first_stage import encoder_id, find_autoencoder, goes_with, refusal
from training.imported import check_images_said, load_autoencoder
from training.latent_data import cache_folder, cached_latents, latent_data
from training.logs import check_log
from training.resuming import find_state
from training.runtime import Runtime

CHANNEL_MULT = 1, 2, 4  # of the widths, level by level


def main(args: Arguments) -> None:
    """Train, show or evaluate, as the arguments say."""
    distributed.start(args.device)
    {TRAIN: train, SHOW: show, EVALUATE: evaluate}[args.mode](args)
    distributed.leave()


def train(args: Arguments) -> None:
    """Cache the latents if they are not there, then train the denoiser on them."""
    state = find_state(args.resume, args.name, "denoiser")
    args = args.resumed(state["settings"]) if state else args
    check_log(args.log)
    distributed.check_batch(args.batch, args.accumulate)  # before hours of encoding
    torch.manual_seed(args.seed)
    runtime = Runtime(args.device, args.precision, args.workers)

    # Data: what the autoencoder was trained on, unless told otherwise; as whitened latents.
    args, model, known = begun(args, state)
    autoencoder, trained_on = load_autoencoder(args.encoder, ("data", "size"))
    check_encoder(args, state, model, autoencoder)
    if not state:
        said = {**trained_on, **known}
        check_images_said(args.encoder, said, args.given)
        said = {key: said[key] for key in ("data", "data_root", "size") if key in said}
        args = args.begun_from(args.encoder, {}, said)
    autoencoder = runtime.place(autoencoder)
    height, width = size = tuple(args.size)
    check_divides(height, width, DENOISER_STRIDE * autoencoder.stride)
    grey = autoencoder.config.image_channels == 1
    splits = open_images(args.data, args.data_root, size, grey)
    images = {split: splits[split] for split in ("train", "valid")}
    check_channels(args.encoder, autoencoder, images["train"])
    ids = {"autoencoder": encoder_id(autoencoder)}
    ids["data"] = cache_id(ids["autoencoder"], images, args.mirror)
    labels = read_labels(args.condition, images, args.data_root)
    ids, label_facts = use_labels(labels, ids, state)
    about = {"data": args.data, "size": size, "autoencoder": args.encoder}
    about["autoencoder_id"] = ids["autoencoder"]
    latents = cached_latents(ids["data"], images, autoencoder, runtime, args.mirror, about, known)
    data = latent_data(latents, images, labels, args.mirror, autoencoder, runtime)

    # The run: how long it is, and what its state keeps.
    run = begin_run("denoiser", args, data.num_train, runtime, args.settings(), ids, state)

    # Network and schedule: two halvings; x0_hat is not clipped, because latents have no bounds.
    model = with_labels(model, labels, known) or denoiser.network(
        autoencoder.config.latent_channels, args.channels, CHANNEL_MULT, args.blocks, args.dropout,
        args.attention, labels,
    )  # fmt: skip
    scheduler = DDPMScheduler(
        SchedulerConfig(NUM_STEPS, args.schedule, args.prediction, clip_x0=False)
    )
    learner = denoiser.DenoiserLearner(
        model, scheduler, runtime, optimizer=args.optimizer, lr=args.lr, ema=args.ema,
        t_density=args.t_density, min_snr=args.min_snr, accumulate=args.accumulate,
    )  # fmt: skip

    # Train; a checkpoint says what its user has to know.
    facts = {
        "data": args.data, "data_root": args.data_root, "size": size, **label_facts,
        "space": "latents", "shape": list(data.valid.shape[1:]),
        "scheduler": asdict(scheduler.config), "latent_stats": asdict(latents["train"].stats),
        "autoencoder_id": ids["autoencoder"], "cache": ids["data"],
        **({"init": args.init} if args.init else {}),
    }  # fmt: skip
    denoiser.train(run, learner, data, facts)


def begun(args: Arguments, state: dict | None) -> tuple[Arguments, UNet | None, dict[str, Any]]:
    """What there is to go on with: (args, the network and facts of a resumed run or of --init)."""
    if state:
        return args, network_in(state), facts_in(state, ("latent_stats", "autoencoder_id"))
    if not args.init:
        return args, None, {}
    model, scheduler, known = load_beginning(args.init, "latents")
    if not known and not args.encoder:
        raise UserError(f"{args.init} does not say its autoencoder; give --encoder")
    found = args.encoder or str(encoder_of(args.init, known["autoencoder_id"]))
    others = {"encoder": found, "dropout": model.config.dropout}
    args = args.begun_from(args.init, denoiser_flags(model, scheduler), others)
    return args, with_dropout(model, args.dropout), known


def check_encoder(
    args: Arguments, state: dict | None, model: UNet | None, autoencoder: AutoencoderKL
) -> None:
    """Raise UserError unless the network, and the run to resume, can go on with its latents."""
    wanted = state["ids"].get("autoencoder") if state else encoder_id(autoencoder)
    if wanted != encoder_id(autoencoder):
        run = f"the run {args.name}"
        raise UserError(refusal(run, str(wanted), args.encoder, autoencoder))
    channels = autoencoder.config.latent_channels
    if model and model.config.in_channels != channels:
        wrong = f"{args.encoder} makes latents of {channels} channels, but {args.init} takes"
        raise UserError(f"{wrong} {model.config.in_channels}; pass the matching --encoder")


def show(args: Arguments) -> None:
    """Generate pictures: sample latents, unwhiten them, decode; or edit a picture, or export."""
    pipeline, facts, trained_on = load(args, args.show)
    if args.export is not None:
        return export(pipeline, Path(args.export), args.show, facts, trained_on)
    tell_card(facts)
    out = Path(args.out)
    training_set = cached_means(facts) if args.neighbours else None
    if args.neighbours and not training_set:
        raise UserError(
            f"--neighbours needs the latents that {args.show} was trained on, which are not in "
            "encoded_img; training a denoiser on the same autoencoder and data makes them again"
        )
    asked = []
    if args.label is not None or args.attributes is not None:
        guidance = Guidance(args.guidance, args.guidance_interval)
        asked = asked_for(args.show, facts, pipeline.model, guidance, args.label, args.attributes)
    if edit := edit_of(args, FACES.fig):
        return edit_picture(pipeline, facts["size"], args.seeds, out, asked=asked, **edit)
    make_pictures(
        pipeline, args.seeds, out,
        asked=asked,
        film=args.film,
        interpolate=args.interpolate,
        neighbours=training_set,
    )  # fmt: skip


def evaluate(args: Arguments) -> None:
    """Measure a denoiser's pictures against images that neither network was trained on."""
    pipeline, facts, trained_on = load(args, args.evaluate)
    folder = Path(args.out)

    # What they are compared with: the test images, or the validation images where there are none.
    known = {**trained_on, **facts}
    check_fields(args.evaluate, known, ("data",))
    data, root = args.data or known["data"], args.data_root_of(known)
    codec = pipeline.codec
    assert isinstance(codec, LatentCodec)
    grey = codec.autoencoder.config.image_channels == 1
    splits = open_images(data, root, tuple(facts["size"]), grey)
    check_channels(args.evaluate, codec.autoencoder, splits["train"])
    split, name = ("test", "test") if "test" in splits else ("valid", "validation")
    guidance = Guidance(args.guidance, args.guidance_interval)
    labels = labels_known(args.evaluate, facts, pipeline.model, splits, root)
    shown = labels.of[split] if labels else None
    asked = all_asked(args.evaluate, facts, pipeline.model, guidance, shown)
    pipeline = replace(pipeline, asked=asked)
    if not is_first():
        return fill_folder(pipeline, args.seeds, folder)  # its share of the pictures
    workers = pipeline.runtime.workers
    reference = Reference(
        test=dataset_images(f"{data}'s {name} images", splits[split], workers),
        train=dataset_images(f"{data}'s training images", splits["train"], workers),
        spaces=autoencoder_spaces(codec) + imagenet_spaces(),
        training_set=cached_means(facts),  # without it, all but the nearest is measured
    )

    # Measure, tell. The classifier is made first, because a failure later would cost more.
    classifier = attribute_classifier(labels, splits["train"], workers) if labels else None
    record = evaluate_denoiser(pipeline, args.seeds, folder, reference, args.evaluate)
    if labels and asked and classifier:
        pictures = read_pictures([picture_path(folder, seed) for seed in args.seeds])
        parts = [part.tolist() for part in torch.arange(len(splits[split])).split(100)]
        record["asked"] = measure_attributes(
            classifier, labels.names, pictures, asked.of_seeds(args.seeds),
            load_batches(splits[split], parts, workers), labels.of[split],
        )  # fmt: skip
    publish(folder, record)


def load(args: Arguments, path: str) -> tuple[Pipeline, dict[str, Any], dict[str, Any]]:
    """(Pipeline of a denoiser's checkpoint, its facts, its autoencoder's facts).

    The autoencoder is args.encoder, or is looked for. Raises UserError where it is not found, or
    is not the one that the denoiser was trained with.
    """
    # The denoiser, and the autoencoder that belongs to it.
    model, scheduler, facts = load_denoiser(path, "latents")
    wanted = facts["autoencoder_id"]
    encoder = args.encoder or encoder_of(path, wanted)
    autoencoder, trained_on = load_autoencoder(encoder, ("data",))
    if not goes_with(autoencoder, wanted):
        raise UserError(refusal(path, wanted, encoder, autoencoder))
    made = autoencoder.latent_shape(facts["size"])
    if made != tuple(facts["shape"]) or autoencoder.config.image_channels not in (1, 3):
        raise UserError(f"{path} makes latents of {facts['shape']}, but {encoder} has {list(made)}")

    # Both, on the device.
    runtime = Runtime(args.device, args.precision, args.workers)
    model, autoencoder = runtime.place(model), runtime.place(autoencoder)
    settings = {"eta": args.eta, "sigma_scale": args.sigma_scale}
    pipeline = Pipeline(
        runtime, model, scheduler, tuple(facts["shape"]),
        LatentCodec(autoencoder, LatentStats(**facts["latent_stats"]), runtime),
        args.sampler, args.sampling_steps, settings, args.batch,
    )  # fmt: skip
    return pipeline, facts, trained_on


def encoder_of(path: str, wanted: str) -> Path:
    """The autoencoder of this id, for the denoiser of this path; UserError where there is none."""
    found = find_autoencoder("checkpoints/autoencoder", wanted)
    if found is None:
        raise UserError(
            f"{path} was trained with autoencoder {wanted[:8]}, which is not in "
            "checkpoints/autoencoder; pass it as --encoder, a checkpoint or a folder of diffusers"
        )
    return found


def cached_means(facts: dict[str, Any]) -> TrainingSet | None:
    """What a denoiser was trained on, from its cache; None where that is gone."""
    folder = cache_folder(str(facts.get("cache")))
    if not (folder / MANIFEST).is_file():
        return None
    latents = LatentDataset(folder, "train", LatentStats(**facts["latent_stats"]))
    return TrainingSet(latents.means, len(latents))


if __name__ == "__main__":
    entry.run(main, ARGS)
