"""What the processor can do, found out without loading anything."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        first = CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices (AMX-BF16 or AVX512-BF16).

    Only Linux on x86 says so in a way that needs no native code; elsewhere the answer is no, and
    float32 is right everywhere.
    """
    return bool({"amx_bf16", "avx512_bf16"} & set(_cpuinfo().get("flags", "").split()))


def prefer_avx512() -> None:
    """Let numpy's OpenBLAS use AVX-512 where the processor has it; to be called before numpy is loaded.

    OpenBLAS goes by the processor's name and takes AVX2 for one that it does not know, as virtual machines often
    show one, whatever it can do; its large products then run at a third of the speed. A choice that the user has
    made in the environment stands.
    """
    needed = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
    if needed <= set(_cpuinfo().get("flags", "").split()):
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def describe() -> dict[str, str | int]:
    """Name of the processor, its kind, the system, and the number of cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    name = _cpuinfo().get("model name") or platform.processor() or "unknown"
    return {"processor": name, "machine": platform.machine(), "system": platform.system(), "cores": cores}
