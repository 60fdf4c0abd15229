"""The machine: which device, which precision, whether compiling pays, and random numbers."""

import ctypes
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch

from common.errors import UserError
from common.files import first_line
from common.launch import launched
from common.machine import cores

Module = TypeVar("Module", bound=torch.nn.Module)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILE_FROM = 10_000  # steps from which a minute of compiling is earned back


class Runtime:
    """device, precision and workers as found for --device, --precision and --workers.

    A context and three verbs: autocast() around the networks, place(model), compiled(model).
    Raises UserError when the device or the precision is not to be had here.
    """

    def __init__(
        self, device: str = "auto", precision: str = "auto", workers: int | None = None
    ) -> None:
        self.device = _device(device)
        self.precision = _bf16_or_fp32(self.device) if precision == "auto" else precision
        if self.device.type == "mps" and self.precision != "fp32":
            raise UserError("--precision: on mps only fp32 is supported")
        # What is fastest where: tensor cores and oneDNN want channels last, mps does not.
        self.memory_format = (
            torch.contiguous_format if self.device.type == "mps" else torch.channels_last
        )
        self.fused = True if self.device.type in ("cpu", "cuda") else None
        if workers is None:
            # A CPU that trains has no core to spare; a GPU wants its images decoded beside it.
            workers = 0 if self.device.type == "cpu" else min(8, cores())
        self.workers = workers
        self.compile = False
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # else fp32 convolutions have 10 bits, as fp16 has
        if self.device.index is not None and self.on_gpu:
            torch.cuda.set_device(self.device)  # for what takes no device: pinning, waiting
        if self.device.type == "cpu":
            _keep_freed_memory()

    @property
    def on_gpu(self) -> bool:
        """Whether this is a CUDA or ROCm GPU; an Apple GPU is nearer to a CPU in what it can do."""
        return self.device.type == "cuda"

    def decide_compile(self, choice: str, steps: int) -> None:
        """Set .compile from --compile auto|on|off for a run of that many steps."""
        self.compile = choice == "on" or (
            choice == "auto" and steps >= COMPILE_FROM and _can_compile(self.device)
        )

    def autocast(self) -> AbstractContextManager:
        """Around forward passes; weights, gradients and losses stay fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])

    def place(self, model: Module) -> Module:
        """The model on the device, its weights in the device's favourite order."""
        return model.to(self.device).to(memory_format=self.memory_format)

    def compiled(self, model: torch.nn.Module) -> Callable:
        """The model, or a compiled view of it with the same weights."""
        return torch.compile(model) if self.compile else model

    def send(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, H, W) on the device, in its favourite order; a GPU is not waited for."""
        x = x.to(self.device, non_blocking=self.device.type == "cuda")
        return x.contiguous(memory_format=self.memory_format)

    def __str__(self) -> str:
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"{platform.machine()}, {torch.get_num_threads()} threads"
        )
        compiled = "compiled" if self.compile else "not compiled"
        return f"{self.device.type} ({name}), {self.precision}, {compiled}"


def _device(choice: str) -> torch.device:
    if choice == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", launched().local_rank)
        alone = launched().size == 1
        return torch.device("mps" if torch.backends.mps.is_available() and alone else "cpu")
    if launched().size > 1 and choice not in ("cpu", "cuda"):
        raise UserError(f"--device {choice}: of several processes each takes the GPU of its number")
    if launched().size > 1 and choice == "cuda":
        choice = f"cuda:{launched().local_rank}"
    try:
        device = torch.device(choice)
        if device.type not in ("cpu", "cuda", "mps"):
            raise NotImplementedError("cpu, cuda and mps are known")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {choice} cannot be used here: {first_line(error)}") from None
    return device


def _keep_freed_memory() -> None:
    """Tell glibc's malloc to keep what is freed for the next step, not to give it back.

    Fresh pages must be cleared by the system at each step: measured on 2 cores, keeping them makes
    a training step 5 to 10 % faster, in the same peak memory. Elsewhere nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    # M_MMAP_THRESHOLD: smaller blocks come from the heap. Older versions take at most 32 MB.
    if mallopt(-3, 2**30) or mallopt(-3, 2**25):
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the end of the heap is kept


def _bf16_or_fp32(device: torch.device) -> str:
    """bf16 only where the hardware multiplies in it: emulated, it is slower than fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "cpu" and sys.platform == "linux":
        flags = Path("/proc/cpuinfo").read_text().split()
        if {"avx512_bf16", "amx_bf16"} & set(flags) or "bf16" in flags:  # "bf16": on Arm
            return "bf16"
    return "fp32"


def _can_compile(device: torch.device) -> bool:
    """Whether a small function compiles on this GPU, which needs Triton and a C compiler.

    Never on a CPU: measured on 2 cores, compiling took 65 to 130 s, and a step of the latent
    denoiser became no faster.
    """
    if device.type != "cuda":
        return False
    try:
        torch.compile(lambda x: torch.sin(x) + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever is missing, training goes on without it
        print(f"not compiling: {first_line(error)}")
        return False
    return True
