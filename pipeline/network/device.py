"""What the machine can do, and what follows for a run: where it computes, in what precision, how many images at once.

Found out without loading anything: a cache hit must not pay for it. The decisions are plain functions of what was
found, so that they hold for machines that are not at hand.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.memory import proc_fields
from pipeline.common.progress import format_bytes

CPUINFO = Path("/proc/cpuinfo")
NVIDIA = Path("/proc/driver/nvidia/version")
WSL = Path("/dev/dxg")  # the GPUs of Windows, seen from its Subsystem for Linux, which has no NVIDIA driver of its own

AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}  # what OpenBLAS needs of it

# Compute capability from which NVIDIA's tensor cores multiply bfloat16 (Ampere):
# https://docs.nvidia.com/cuda/cuda-c-programming-guide/#features-and-technical-specifications.
BFLOAT16_CAPABILITY = (8, 0)

# Pixels that go through together on a processor: 256 images at 32 px, 128 at 64, 64 at 96, 32 at 128, 16 at 224.
# Found by measuring; above it little is gained, and memory grows.
BATCH_PIXELS = 128 * 80 * 80
MAX_BATCH = 256
MAX_GPU_BATCH = 1024
# Less free memory than this, in bytes, and a GPU is left alone: weights, the libraries' own and a few images need it.
MIN_GPU_MEMORY = 1 << 29
MAX_THREADS = 1024  # with tens of thousands TensorFlow hangs or crashes
# The first block holds the most: two maps of 64 channels at full size, and as much again to work with.
MAPS_HELD = 4 * 64
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Gpu:
    """A GPU that TensorFlow sees."""

    name: str
    capability: tuple[int, int]  # NVIDIA's compute capability, major and minor; (0, 0) where it is not known
    free: int  # memory that TensorFlow can have, in bytes; 0 where it cannot be found out


@dataclass(frozen=True)
class Plan:
    """How a run computes."""

    device: str  # CPU:0, or GPU: and its place in TensorFlow's list
    label: str  # what it is, for people
    precision: str  # float32 or bfloat16
    batch_size: int  # images that go through together


def choose_device(
    asked: str, gpus: Sequence[Gpu], *, bfloat16: bool, image_size: int, batch_size: int | None, memory: int | None
) -> Plan:
    """Decide where to compute, in what precision, and how many images at once.

    A GPU is used without being asked for, of those that can do what is asked for the one with the most free memory: in
    bfloat16 where its compute capability is 8.0 or more, else in float32. What none can do, the processor does.

    Parameters
    ----------
    gpus : sequence of Gpu
        In TensorFlow's order.
    bfloat16 : bool
        Whether the processor multiplies bfloat16; when ``auto`` is asked for, whether it does so faster than float32.
    memory : int or None
        Free memory of the processor, in bytes; None where it is not known.

    Raises
    ------
    UserError
        When nothing here computes what is asked for, or a batch cannot fit into memory.
    """
    able = [gpu.capability >= BFLOAT16_CAPABILITY for gpu in gpus]
    usable = [i for i, gpu in enumerate(gpus) if gpu.free >= MIN_GPU_MEMORY and (asked != "bfloat16" or able[i])]
    if usable:
        index = max(usable, key=lambda i: gpus[i].free)
        gpu = gpus[index]
        precision = asked if asked != "auto" else "bfloat16" if able[index] else "float32"
        fitting = gpu.free // 2 // _image_bytes(image_size, precision)
        chosen = batch_size or max(1, min(MAX_GPU_BATCH, _power_of_two(fitting)))
        _check_memory(chosen, image_size, precision, gpu.free, f" on {gpu.name}")
        return Plan(f"GPU:{index}", gpu.name, precision, chosen)
    if asked == "bfloat16" and not bfloat16:
        raise UserError(
            "The precision parameter must be auto or float32 on this machine: its processor has no bfloat16 "
            "instructions (AMX or AVX512-BF16), and no GPU of compute capability 8.0 or more, with "
            "memory to spare, is seen. Got 'bfloat16'. Run the same command with --precision float32."
        )
    precision = asked if asked != "auto" else "bfloat16" if bfloat16 else "float32"
    chosen = batch_size or default_batch_size(image_size)
    if memory is not None:
        fitting = _power_of_two(memory // _image_bytes(image_size, precision))
        chosen = batch_size or max(1, min(chosen, fitting))
        _check_memory(chosen, image_size, precision, memory)
    return Plan("CPU:0", "the processor", precision, chosen)


def default_batch_size(image_size: int) -> int:
    """Images that go through together on a processor, at a size in pixels."""
    return max(1, min(MAX_BATCH, _power_of_two(BATCH_PIXELS // image_size**2)))


def _power_of_two(number: int) -> int:
    """The largest power of two that is not above a number; 0 for 0."""
    return 1 << (number.bit_length() - 1) if number > 0 else 0


def _image_bytes(image_size: int, precision: str) -> int:
    return image_size**2 * MAPS_HELD * BYTES[precision]


def _check_memory(batch_size: int, image_size: int, precision: str, memory: int, where: str = "") -> None:
    """Raise UserError for a batch that memory cannot hold, before the system stops the process for it."""
    needed = batch_size * _image_bytes(image_size, precision)
    if needed > memory:
        fitting = _power_of_two(memory // 2 // _image_bytes(image_size, precision))
        advice = f"--batch-size {fitting}; the features are the same" if fitting else "a smaller --image-size"
        raise UserError(
            f"The batch size parameter must leave a batch in memory: {batch_size:,} images at {image_size} px in "
            f"{precision} take about {format_bytes(needed)}, and {format_bytes(memory)} are free{where}. Choose "
            f"{advice}."
        )


# --- what is here -----------------------------------------------------------------------------


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices (AMX-BF16 or AVX512-BF16).

    Only Linux on x86 says so in a way that needs no native code; elsewhere the answer is no, and
    float32 is right everywhere.
    """
    return bool({"amx_bf16", "avx512_bf16"} & flags())


def flags() -> set[str]:
    """What the processor can do, in the words of Linux on x86; nothing elsewhere."""
    return set(proc_fields(CPUINFO).get("flags", "").split())


def is_faster_in_bfloat16() -> bool:
    """Whether the processor computes the network faster in bfloat16 than in float32.

    Having the instructions is not enough: Intel's AVX512-BF16, without AMX, was measured at 0.55 times the speed of
    float32, both in the network and in plain matrix products, where AMD's has twice the speed.
    """
    slow = proc_fields(CPUINFO).get("vendor_id") == "GenuineIntel" and "amx_bf16" not in flags()
    return has_bfloat16() and not slow


def may_have_gpu() -> bool:
    """Whether it is worth asking TensorFlow, which takes seconds, for a GPU: there is a driver."""
    return (NVIDIA.exists() or WSL.exists()) and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")


def cores() -> int:
    """Number of cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def prefer_avx512() -> None:
    """Let numpy's OpenBLAS use AVX-512 where the processor has it; to be called before numpy is loaded.

    OpenBLAS goes by the processor's name and takes AVX2 for one that it does not know, as virtual machines often
    show one, whatever it can do; its large products then run at a third of the speed. A choice that the user has
    made in the environment stands.
    """
    if flags() >= AVX512:
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def describe() -> dict[str, str | int]:
    """Name of the processor, its kind, the system, and the number of cores this process may use."""
    name = proc_fields(CPUINFO).get("model name") or platform.processor() or "unknown"
    return {"processor": name, "machine": platform.machine(), "system": platform.system(), "cores": cores()}


def label(threads: int) -> str:
    """Name of the machine, its processor and a number of threads, in a few words."""
    return f"{platform.node()}: {describe()['processor']}, {threads} thread{'s' * (threads != 1)}"
