"""Where a run computes, in what precision, how many images at once: decided for machines that are not here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import network
from pipeline.common import memory
from pipeline.common.errors import UserError
from pipeline.network import device as hardware
from pipeline.network.compile import make_plan
from pipeline.network.device import Gpu, Plan

GB = 1_000_000_000
AMPERE = Gpu("an Ampere", (8, 6), 8 * GB)
TURING = Gpu("a Turing", (7, 5), 16 * GB)
FULL = Gpu("a Hopper whose memory others hold", (9, 0), GB // 100)
SILENT = Gpu("one that does not say how much memory it has", (9, 0), 0)


def plan(asked: str = "auto", gpus: tuple[Gpu, ...] = (), **changes: object) -> Plan:
    known = {"bfloat16": True, "image_size": 64, "batch_size": None, "memory": 16 * GB}
    return hardware.choose_device(asked, gpus, **{**known, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "gpus", "bfloat16", "device", "precision"),
    [
        ("auto", (), True, "CPU:0", "bfloat16"),
        ("auto", (), False, "CPU:0", "float32"),
        ("float32", (), True, "CPU:0", "float32"),
        ("auto", (AMPERE,), False, "GPU:0", "bfloat16"),
        ("auto", (TURING,), True, "GPU:0", "float32"),
        ("float32", (AMPERE,), True, "GPU:0", "float32"),
        ("bfloat16", (TURING,), True, "CPU:0", "bfloat16"),  # what the GPU cannot do, the processor does
        ("bfloat16", (AMPERE,), False, "GPU:0", "bfloat16"),
        ("auto", (AMPERE, TURING), True, "GPU:1", "float32"),  # the one with the most memory
        ("auto", (Gpu("unknown", (0, 0), GB),), True, "GPU:0", "float32"),
        ("bfloat16", (AMPERE, TURING), False, "GPU:0", "bfloat16"),  # the one that can
        ("auto", (Gpu("just below", (7, 9), GB),), False, "GPU:0", "float32"),
        ("auto", (Gpu("just enough", (8, 0), GB),), False, "GPU:0", "bfloat16"),
        ("auto", (FULL,), True, "CPU:0", "bfloat16"),  # others hold its memory
        ("auto", (FULL, TURING), True, "GPU:1", "float32"),
        ("auto", (SILENT,), False, "CPU:0", "float32"),
    ],
)
def test_device_and_precision(asked: str, gpus: tuple[Gpu, ...], bfloat16: bool, device: str, precision: str) -> None:
    found = plan(asked, gpus, bfloat16=bfloat16)
    assert (found.device, found.precision) == (device, precision)


@pytest.mark.parametrize("gpus", [(), (TURING,), (FULL,)])
def test_bfloat16_that_nothing_has_is_refused_and_float32_offered(gpus: tuple[Gpu, ...]) -> None:
    with pytest.raises(UserError, match=r"no bfloat16.*--precision float32"):
        plan("bfloat16", gpus, bfloat16=False)


def test_batches_fit_the_device() -> None:
    assert [plan(image_size=size).batch_size for size in (32, 64, 128, 224, 1024)] == [256, 128, 32, 16, 1]
    assert plan(batch_size=7).batch_size == 7
    assert plan(memory=GB // 10).batch_size == 32, "what is chosen goes with the memory that is free"
    sizes = [plan(gpus=(Gpu("any", (9, 0), free),)).batch_size for free in (GB // 100, GB, 8 * GB, 80 * GB)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 1
    assert sizes[-1] == hardware.MAX_GPU_BATCH


def test_a_batch_that_cannot_fit_is_explained() -> None:
    with pytest.raises(UserError, match=r"1,024 images at 1024 px .* are free. Choose --batch-size \d+;"):
        plan(image_size=1024, batch_size=1024)
    with pytest.raises(UserError, match="smaller --image-size"):
        plan(image_size=1024, batch_size=1, memory=GB // 100)
    assert plan(image_size=1024, batch_size=1024, memory=None).batch_size == 1024
    with pytest.raises(UserError, match=r"8\.0 GB are free on an Ampere\. Choose --batch-size 4;"):
        plan(gpus=(AMPERE,), image_size=1024, batch_size=1024)


def test_what_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in {hardware: ("CPUINFO", "NVIDIA", "WSL"), memory: ("MEMINFO", "CGROUP")}.items():
        for name in names:
            monkeypatch.setattr(module, name, tmp_path / name)
    assert not hardware.has_bfloat16()
    assert not hardware.may_have_gpu()
    assert memory.free_memory() is None
    (tmp_path / "CPUINFO").write_text("model name : x\nflags : fpu avx512_bf16\n\nflags : fpu\n", encoding="utf-8")
    (tmp_path / "MEMINFO").write_text("MemTotal: 9 kB\nMemAvailable:   4 kB\n", encoding="utf-8")
    (tmp_path / "NVIDIA").touch()
    assert hardware.has_bfloat16()
    assert hardware.may_have_gpu()
    assert memory.free_memory() == 4096
    (tmp_path / "CGROUP").mkdir()
    (tmp_path / "CGROUP" / "memory.max").write_text("3000\n", encoding="ascii")
    (tmp_path / "CGROUP" / "memory.current").write_text("1000\n", encoding="ascii")
    assert memory.free_memory() == 2000, "a container's limit counts too"
    (tmp_path / "MEMINFO").write_text("MemTotal: 9 kB\nMemAvailable:   8 kB\n", encoding="utf-8")
    stat = "anon 100\nfile 900\ninactive_file 600\nactive_file 200\n"
    (tmp_path / "CGROUP" / "memory.stat").write_text(stat, encoding="ascii")
    assert memory.free_memory() == 2800, "files that it has cached it gives up"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not hardware.may_have_gpu()


@pytest.mark.parametrize(
    ("vendor", "flags", "precision"),
    [
        ("AuthenticAMD", "avx512f avx512_bf16", "bfloat16"),
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16", "bfloat16"),
        ("GenuineIntel", "avx512f avx512_bf16", "float32"),  # it has bfloat16, but is slower in it
        ("AuthenticAMD", "avx512f", "float32"),
    ],
)
def test_auto_takes_what_the_processor_is_faster_in(
    vendor: str, flags: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"vendor_id : {vendor}\nflags : {flags}\n", encoding="utf-8")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(hardware, "may_have_gpu", lambda: False)
    assert make_plan("auto", image_size=64, batch_size=None).precision == precision
    if "bf16" in flags:
        assert make_plan("bfloat16", image_size=64, batch_size=None).precision == "bfloat16", "asked for, it is done"


def test_a_gpu_that_cannot_serve_is_named_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[bool] = []
    vgg16 = SimpleNamespace(gpus=lambda: [Gpu("a Hopper", (9, 0), GB // 100)], leave_gpus=lambda: left.append(True))
    monkeypatch.setitem(sys.modules, "pipeline.network.vgg16", vgg16)
    monkeypatch.setattr(network, "vgg16", vgg16, raising=False)
    monkeypatch.setattr(hardware, "may_have_gpu", lambda: True)
    with caplog.at_level("WARNING", logger="pipeline"):
        assert make_plan("auto", image_size=64, batch_size=None).device == "CPU:0"
    assert left
    assert "a Hopper (10.0 MB free)" in caplog.text
    vgg16.gpus = lambda: [Gpu("a Hopper", (9, 0), 80 * GB)]
    assert make_plan("auto", image_size=64, batch_size=None).device == "GPU:0"
    assert len(left) == 1
