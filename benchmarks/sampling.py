"""Pictures/s of a trained denoiser, ours against diffusers' pipeline with the same network."""

import torch

from benchmarks import steps
from benchmarks.report import alternate, installed
from models.diffusion import epsilon
from models.samplers import picture_noise, sample
from training.runtime import Runtime

STEPS, BATCH = 50, 64


def sampling(report, runtime):
    """Ancestral sampling of latents, STEPS calls of the network for each of BATCH pictures."""
    device, usual = runtime.device.type, "bf16" if runtime.on_gpu else "fp32"
    makers = {"ours": f"sampling.ours({device!r}, {runtime.precision!r})"}
    if installed("diffusers"):
        for precision in sorted({"fp32", runtime.precision}, reverse=True):
            name = f"DDPMPipeline, {precision}"
            makers[name] = f"sampling.pipeline({device!r}, {precision!r})"
    seconds = alternate(makers, rounds=3, calls=1)
    shape = "x".join(map(str, steps.latent_shape(runtime.on_gpu)))
    for name, value in seconds.items():
        note = f"{STEPS} steps, {BATCH} latents of {shape}"
        report.add(f"sampling, {name}", BATCH / value, "latents/s", note=note)
        if name != "ours":
            target = ">= 1.5" if name.endswith(usual) else ""
            report.add(f"sampling, ours against {name}", value / seconds["ours"], "times", target)


def ours(device, precision):
    """A function that samples BATCH latents."""
    runtime = Runtime(device, precision)
    model, scheduler = steps.our_network()
    denoise = epsilon(runtime.place(model).eval(), scheduler)

    def run():
        draw = picture_noise(range(BATCH), steps.latent_shape(runtime.on_gpu), runtime.device)
        with runtime.autocast():
            sample(denoise, scheduler, draw, "ddpm", STEPS)

    return run


def pipeline(device, precision):
    """A function that samples BATCH latents by diffusers' DDPMPipeline."""
    import diffusers

    _, model = steps.diffusers_denoiser(device, precision)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, clip_sample=False)
    pipe = diffusers.DDPMPipeline(model.eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe = pipe.to(device)

    def run():
        with torch.no_grad(), steps.autocast(device, precision):
            pipe(batch_size=BATCH, num_inference_steps=STEPS, output_type="np")

    return run
