"""A training step: ours and the peers', its share of the machine's peak, and its memory.

Networks and batches are the defaults of train_encoder.py and latent_diffusion.py, at the size that
CelebA has on this machine. Data are random numbers: no speed depends on them.
"""

import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import alternate, installed, python, synchronize
from command_line.defaults import default_size
from command_line.parsers import parse_encoder, parse_latent
from latent_diffusion import CHANNEL_MULT
from models.draws import Draws, Purpose
from models.scheduler import DDPMScheduler, SchedulerConfig
from train_encoder import autoencoder_network, discriminator_network
from training import denoiser
from training.autoencoder import AutoencoderLearner, GanPhase
from training.denoiser import DenoiserLearner
from training.runtime import COMPILE_FROM, DTYPES, Runtime

# (batch, channels, height): 3x3 convolutions of as many channels to as many; and n x n matrices.
CONVOLUTIONS = [(16, 64, 64), (16, 128, 32), (64, 128, 16), (64, 256, 16), (64, 256, 8)]
MATRICES = [1024, 2048, 4096, 8192]
MIDDLE = 1000  # number of the step that is measured: the average is warm


def latent_args():
    """The arguments of a denoiser's training, all defaults."""
    return parse_latent(["--train", "--encoder", "none"])


def encoder_args():
    """The arguments of an autoencoder's training, all defaults."""
    return parse_encoder([])


def image_size(on_gpu):
    """(H, W) of CelebA's images, by default, on this machine."""
    return default_size("celeba", on_gpu)


def latent_shape(on_gpu):
    """(c, h, w) of their latents."""
    height, width = image_size(on_gpu)
    return 3, height // 4, width // 4


def our_network():
    """The denoiser of latent_diffusion.py --train, untrained, and its schedule."""
    return network_and_schedule(latent_args(), 3, CHANNEL_MULT, clip_x0=False)


def network_and_schedule(args, in_channels, channel_mult, clip_x0):
    """The UNet and the DDPMScheduler of the arguments of a denoiser's training."""
    model = denoiser.network(in_channels, args.channels, channel_mult, args.blocks, args.dropout)
    return model, DDPMScheduler(SchedulerConfig(1000, args.schedule, args.prediction, clip_x0))


def our_runtime(device, precision, compiled):
    """The Runtime of a step; compiled: as the default runs are on a GPU, where that works."""
    runtime = Runtime(device, precision)
    runtime.decide_compile("auto" if compiled else "off", COMPILE_FROM)
    return runtime


def our_denoiser(device, precision, compiled=False):
    """(step, network): a function that makes one training step on whitened latents."""
    args, runtime = latent_args(), our_runtime(device, precision, compiled)
    x0 = torch.randn(args.batch, *latent_shape(runtime.on_gpu))
    return our_step(args, runtime, *our_network(), lambda: x0)


def our_step(args, runtime, model, scheduler, draw):
    """(step, network) of a DenoiserLearner, in the middle of a run; draw: () -> x0 on the CPU."""
    learner = our_learner(args, runtime, model, scheduler)
    draws = Draws(0, MIDDLE, range(args.batch), runtime.device)
    return lambda: learner.step(runtime.send(draw()), 1.0, draws), learner.model


def our_learner(args, runtime, model, scheduler):
    """The DenoiserLearner of the arguments of a denoiser's training."""
    return DenoiserLearner(
        model, scheduler, runtime, optimizer=args.optimizer, lr=args.lr, ema=args.ema,
        t_density=args.t_density, min_snr=args.min_snr,
    )  # fmt: skip


def unet2d(config, **more):
    """diffusers' UNet2DModel of a UNetConfig's structure, untrained."""
    import diffusers

    n = len(config.channels)
    return diffusers.UNet2DModel(
        in_channels=config.in_channels, out_channels=config.in_channels,
        block_out_channels=config.channels, layers_per_block=config.blocks,
        down_block_types=["DownBlock2D"] * n, up_block_types=["UpBlock2D"] * n,
        norm_num_groups=config.groups, add_attention=False, **more,
    )  # fmt: skip


def diffusers_denoiser(device, precision):
    """The same network and batch by diffusers, in the steps of its own training example: AdamW,
    clipping, no EMA (that example's default)."""
    import diffusers

    height_width = latent_shape(device == "cuda")[1:]
    model = unet2d(our_network()[0].config, sample_size=height_width).to(device).train()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    x0 = torch.randn(latent_args().batch, *latent_shape(device == "cuda"), device=device)

    def step():
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),), device=device)
        with autocast(device, precision):
            out = model(scheduler.add_noise(x0, noise, t), t).sample
        F.mse_loss(out.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, model


def ddpm_pytorch_denoiser(device, precision):
    """denoising-diffusion-pytorch's Unet with as many parameters as ours, in the steps of its
    Trainer: Adam, clipping, EMA at every tenth step."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA as TheirEMA

    shape = latent_shape(device == "cuda")
    model = equal_size(
        lambda dim: Unet(dim=dim, dim_mults=(1, 2, 4), channels=shape[0]), our_network()[0]
    )
    diffusion = GaussianDiffusion(model, image_size=shape[1:], auto_normalize=False)
    diffusion = diffusion.to(device).train()
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=8e-5, betas=(0.9, 0.99))
    ema = TheirEMA(diffusion, beta=0.995, update_every=10).to(device)
    x0 = torch.randn(latent_args().batch, *shape, device=device)

    def step():
        with autocast(device, precision):
            loss = diffusion(x0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    return step, model


def autocast(device, precision):
    """The line that a peer's user can add; nothing for fp32."""
    return torch.autocast(device, DTYPES[precision], enabled=precision != "fp32")


def equal_size(make, like):
    """make(dim) for the multiple of 8 that comes nearest to the number of parameters of like."""
    wanted = size(like)
    dims = range(8, 257, 8)
    with torch.device("meta"):
        best = min(dims, key=lambda dim: abs(size(make(dim)) - wanted))
    return make(best)


def size(model):
    return sum(p.numel() for p in model.parameters())


def our_autoencoder(device, precision, compiled=False):
    """(step, network): one training step of generator and discriminator together."""
    args, runtime = encoder_args(), our_runtime(device, precision, compiled)
    height_width = image_size(runtime.on_gpu)
    model, disc = our_autoencoder_network(), discriminator_network(3, args.channels, height_width)
    learner = AutoencoderLearner(
        model, disc, runtime, optimizer=args.optimizer, lr=args.lr, ema=args.ema,
        kl_weight=args.kl_weight, gan_weight=args.gan_weight,
    )  # fmt: skip
    x = runtime.send(torch.rand(args.batch, 3, *height_width) * 2 - 1)
    phase = GanPhase(disc_learns=True, ramp=1.0)
    draws = Draws(0, MIDDLE, range(args.batch), runtime.device)
    return lambda: learner.step(x, 1.0, draws, phase, args.batch), learner.model


def our_autoencoder_network():
    """The autoencoder of train_encoder.py, untrained."""
    args = encoder_args()
    return autoencoder_network(3, args.latent_channels, args.channels, args.blocks)


# ---- Figures ------------------------------------------------------------------------------------

CONTENDERS = {
    "ours": our_denoiser,
    "diffusers": diffusers_denoiser,
    "denoising_diffusion_pytorch": ddpm_pytorch_denoiser,
    "autoencoder": our_autoencoder,
    "ours_compiled": partial(our_denoiser, compiled=True),
    "autoencoder_compiled": partial(our_autoencoder, compiled=True),
}


def make(name, device, precision):
    """The step of one of CONTENDERS."""
    return CONTENDERS[name](device, precision)[0]


def denoisers(runtime):
    """{what stands in the table: (contender, precision)} of those that are installed. Peers as
    they come: fp32 on a CPU and bf16 on a GPU; then in bf16, where this machine multiplies in it.
    """
    precisions = ["bf16"] if runtime.on_gpu else ["fp32", "bf16"]
    if runtime.precision == "fp32":
        precisions = ["fp32"]
    found = {"ours": ("ours", runtime.precision)}
    if runtime.on_gpu:  # where long runs compile by default
        found = {"ours": ("ours_compiled", runtime.precision)}
        found["ours, not compiled"] = ("ours", runtime.precision)
    for package in ("diffusers", "denoising_diffusion_pytorch"):
        if installed(package):
            found |= {f"{package}, {precision}": (package, precision) for precision in precisions}
    return found


def denoiser_steps(report, runtime, quick=False):
    """Images/s of a denoiser's training step, ours against the peers'."""
    device = runtime.device.type
    makers = {
        label: f"steps.make({name!r}, {device!r}, {precision!r})"
        for label, (name, precision) in denoisers(runtime).items()
    }
    seconds = alternate(makers, rounds=3 if quick else 9, calls=2)
    batch = latent_args().batch
    shape = "x".join(map(str, latent_shape(runtime.on_gpu)))
    for label, (name, precision) in denoisers(runtime).items():
        millions = size(CONTENDERS[name](device, precision)[1]) / 1e6
        note = f"{precision}, {millions:.1f} M parameters, batch {batch} of {shape}"
        report.add(f"denoiser step, {label}", batch / seconds[label], "latents/s", note=note)
        if label == "ours":
            continue
        at_least = 4 if name.startswith("denoising") else 1.5 if runtime.on_gpu else 1.7
        usual = precision == ("bf16" if runtime.on_gpu else "fp32")
        ratio = seconds[label] / seconds["ours"]
        target = f">= {at_least}" if usual and name != "ours" else ""
        report.add(f"denoiser step, ours against {label}", ratio, "times", target)


def shares_of_peak(report, runtime, quick=False):
    """FLOP/s of our training steps over the highest rate that this machine shows."""
    best, where = peak(runtime)
    args, height_width = encoder_args(), image_size(runtime.on_gpu)
    jobs = {"denoiser": ("ours", latent_args().batch), "autoencoder": ("autoencoder", args.batch)}
    targets = {"denoiser": ">= 0.45" if runtime.on_gpu else ">= 0.55", "autoencoder": ">= 0.45"}
    arguments = f"{runtime.device.type!r}, {runtime.precision!r}"
    ending = "_compiled" if runtime.on_gpu else ""
    seconds = {}
    for label, (name, batch) in jobs.items():  # one after the other: who is cut has the first
        maker = {label: f"steps.make({name + ending!r}, {arguments})"}
        seconds |= alternate(maker, rounds=3 if quick else 7)
        best, where = max((best, where), peak(runtime))
        flops = count(make(name, runtime.device.type, runtime.precision))
        milliseconds = 1e3 * seconds[label] / batch
        note = f"{flops / batch / 1e9:.2f} GFLOP and {milliseconds:.2f} ms an image"
        share = flops / seconds[label] / best
        report.add(f"{label} step, share of peak", share, "", targets[label], note)
    note = f"{where}; {platform.processor() or platform.machine()}"
    report.add("arithmetic peak", best / 1e12, f"TFLOP/s in {runtime.precision}", note=note)
    note = f"{'x'.join(map(str, height_width))}, batch {args.batch}"
    speed = args.batch / seconds["autoencoder"]
    report.add("autoencoder step, with GAN", speed, "images/s", note=note)


def draws(report, runtime):
    """The random numbers of a denoiser's step, many small operations, beside the step itself."""
    arguments = f"{runtime.device.type!r}, {runtime.precision!r}"
    makers = {"draws": f"steps.draw_all({runtime.device.type!r})"}
    makers["step"] = f"steps.make('ours', {arguments})"
    seconds = alternate(makers, rounds=3)
    report.add("random numbers of a denoiser step", 1e3 * seconds["draws"], "ms")
    report.add(
        "their time over that of the step, not compiled", seconds["draws"] / seconds["step"], ""
    )


def draw_all(device):
    """A function that draws what a denoiser's training step does: posteriors, t and noise."""
    runtime, shape = Runtime(device), latent_shape(device == "cuda")

    def run():
        numbers = Draws(0, MIDDLE, range(latent_args().batch), runtime.device)
        numbers.normal(Purpose.POSTERIOR, shape)
        numbers.uniform(Purpose.TIMESTEP)
        numbers.normal(Purpose.NOISE, shape)

    return run


def floors(report, runtime):
    """The least that a step can take: its FLOPs at the machine's peak, its bytes at the speed of
    its memory. Bytes: what is kept for the backward pass, written once and read once, and per
    parameter 36 (weight, gradient, AdamW's two moments and average read, all but the gradient
    written; for Muon's weights, which have one moment, 8 too many; the autoencoder's alone, the
    discriminator's would add 3 %)."""
    best, _ = peak(runtime)
    speed = bandwidth(runtime.device)
    report.add("memory bandwidth", speed / 1e9, "GB/s", note="read and written by a copy")
    for label, name in {"denoiser": "ours", "autoencoder": "autoencoder"}.items():
        step, network = CONTENDERS[name](runtime.device.type, runtime.precision)
        flops, kept = count(step), kept_bytes(step, network)
        moved = 2 * kept + 36 * size(network)
        note = f"{flops / 1e9:.0f} GFLOP a step"
        report.add(f"{label} step, arithmetic floor", 1e3 * flops / best, "ms", note=note)
        note = f"{kept / 1e6:.0f} MB kept for the backward pass"
        report.add(f"{label} step, bytes floor", 1e3 * moved / speed, "ms", note=note)


def kept_bytes(step, network):
    """Bytes of all that one call keeps for its backward passes, beside the network's parameters."""
    kept, known = {}, {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held: its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(storage.nbytes() for storage in kept.values())


def bandwidth(device):
    """Bytes/s read and written by a copy of 256 MB."""
    a, b = torch.zeros(2, 2**26, device=device)
    times = []
    for i in range(8):
        synchronize()
        began = time.perf_counter()
        b.copy_(a)
        synchronize()
        times += [time.perf_counter() - began] * (i >= 3)
    return 2 * a.nbytes / statistics.median(times)


def count(step):
    """FLOPs of one call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


@torch.no_grad()
def peak(runtime):
    """(highest FLOP/s, of which shape) among CONVOLUTIONS and MATRICES, in runtime's precision."""
    more = {"device": runtime.device, "dtype": DTYPES[runtime.precision]}
    rates = {}

    def measure(name, function, flops):
        times = []
        for i in range(8):
            synchronize()
            began = time.perf_counter()
            function()
            synchronize()
            times += [time.perf_counter() - began] * (i >= 3)
        rates[name] = flops / min(times)

    for batch, c, height in CONVOLUTIONS:
        x = torch.randn(batch, c, height, height, **more)
        x = x.contiguous(memory_format=runtime.memory_format)
        w = torch.randn(c, c, 3, 3, **more).contiguous(memory_format=runtime.memory_format)
        name = f"3x3 convolution, {c} channels, {batch}x{height}x{height}"
        measure(name, lambda x=x, w=w: F.conv2d(x, w, padding=1), 18 * c * c * x[:, 0].numel())
    for n in MATRICES if runtime.on_gpu else MATRICES[:3]:
        a = torch.randn(n, n, **more)
        measure(f"product of {n}x{n} matrices", lambda a=a: a @ a, 2 * n**3)
    best = max(rates, key=rates.get)
    return rates[best], best


def memory(report, runtime):
    """Peak memory of a training step, each in a process of its own."""
    device = runtime.device.type
    jobs = denoisers(runtime) | {"autoencoder": ("autoencoder", runtime.precision)}
    code = "from benchmarks import steps; print(steps.peak_memory{!r})"
    found = {
        label: float(python(code.format((name, device, precision))))
        for label, (name, precision) in jobs.items()
    }
    usual = next((gb for label, gb in found.items() if label.startswith("diffusers")), None)
    for label, gb in found.items():
        what = "autoencoder step with GAN" if label == "autoencoder" else f"denoiser step, {label}"
        target, note = "", "without EMA" if label.startswith("diffusers") else ""
        if label == "ours" and usual:
            target = f"<= {usual:.4f}"
            note = f"{runtime.precision}, with EMA; the target is diffusers' own as it comes"
        report.add(f"peak memory, {what}", gb, "GB", target, note)


def peak_memory(name, device, precision):
    """GB at most in this process after five training steps of a contender; on a CPU what the
    process had before it made the network is taken off."""
    if name == "diffusers":  # their modules are no memory of the step
        from diffusers import DDPMScheduler, UNet2DModel  # noqa: F401
    if name == "denoising_diffusion_pytorch":
        import denoising_diffusion_pytorch  # noqa: F401
    before = resident()
    step = make(name, device, precision)
    for _ in range(5):
        step()
    if torch.cuda.is_available() and device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resident(peak=True) - before


def resident(peak=False):
    """GB of this process in memory, now or at most."""
    if sys.platform == "linux":
        text = Path("/proc/self/status").read_text().split()
        return int(text[text.index("VmHWM:" if peak else "VmRSS:") + 1]) * 1024 / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
