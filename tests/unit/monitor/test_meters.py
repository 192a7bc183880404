"""Meters against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.monitor.meters import (
    EtaMeter,
    format_count,
    format_seconds,
    memory_gb,
    model_flops_utilization,
    own_seconds,
    perplexity,
    slowest_rank,
    step_rates,
)
from pipeline.monitor.peak_flops import number_format, peak_flops
from pipeline.monitor.step_clock import PHASES


def test_perplexity_at_its_edges() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(50.0)) == pytest.approx(50.0)
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_mfu_is_achieved_over_peak_of_all_devices() -> None:
    assert model_flops_utilization(4e15, 2.0, 1e15, 8) == pytest.approx(0.25)
    assert model_flops_utilization(4e15, 2.0, None, 8) is None
    assert model_flops_utilization(4e15, 0.0, 1e15, 8) is None


def test_rates_leave_out_validations_and_checkpoints() -> None:
    seconds = dict.fromkeys(PHASES, 0.0) | {"data_wait": 2.0, "forward": 2.5, "backward": 3.0, "other": 0.5}
    seconds |= {"validation": 5.0, "checkpoint": 7.0}
    rates = step_rates(4, 1200, 800.0, seconds, peak_flops_per_device=100.0, world_size=2)
    assert rates["tokens_per_second"] == 1200 / 8
    assert rates["seconds_per_step"] == 2.0
    assert rates["mfu"] == 800 / 8 / 200
    assert rates["data_wait_fraction"] == 0.25
    assert {name: value for name, value in rates.items() if name.startswith("time_") and value} == {
        "time_data_wait": 0.5,
        "time_forward": 0.625,
        "time_backward": 0.75,
        "time_other": 0.125,
        "time_validation": 1.25,
        "time_checkpoint": 1.75,
    }
    assert step_rates(4, 1200, 800.0, seconds, None, 2)["mfu"] is None


def test_own_time_leaves_out_waits_for_others_and_what_is_no_step() -> None:
    seconds = {phase: 2.0**number for number, phase in enumerate(PHASES)}
    outside = seconds["communication"] + seconds["validation"] + seconds["checkpoint"]
    assert own_seconds(seconds) == sum(seconds.values()) - outside


def test_the_slowest_rank_is_named_beside_the_median() -> None:
    assert slowest_rank([0.5, 0.25, 2.0, 0.5]) == {
        "slowest_rank": 2,
        "slowest_rank_seconds": 2.0,
        "median_rank_seconds": 0.5,
    }
    assert slowest_rank([1.0]) == {}


def test_eta_follows_the_recent_pace() -> None:
    eta = EtaMeter(first_step=100, total_steps=200, now_seconds=0.0, window=3)
    assert eta.add(100, 1.0) is None
    assert eta.add(110, 10.0) == pytest.approx(90.0)
    assert eta.add(120, 12.0) == pytest.approx(80 * 12 / 20)
    assert eta.add(130, 14.0) == pytest.approx(70 * 4 / 20)  # the slow start has left the window
    assert eta.add(200, 20.0) == 0.0


def test_eta_is_what_is_left_of_a_budget_of_time_or_of_the_steps() -> None:
    eta = EtaMeter(first_step=0, total_steps=1000, now_seconds=0.0, budget_seconds=400.0)
    assert eta.add(0, 0.0) is None
    assert eta.add(0, 0.0, 0.25) == 300.0  # known before there is a pace
    assert eta.add(10, 100.0, 0.5) == 200.0
    assert eta.add(10, 101.0) == 200.0
    assert eta.add(20, 400.0, 1.1) == 0.0
    short = EtaMeter(first_step=0, total_steps=20, now_seconds=0.0, budget_seconds=400.0)
    assert short.add(10, 100.0, 0.25) == 100.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (200, "3:20"), (7400, "2:03:20"), (353_000, "4 d 02:03"), (-1, "0:00")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (999.7, "1.00k"), (12_345, "12.3k"), (999_960, "1.00M"), (1.2e9, "1.20G"), (2e14, "200T")],
)
def test_format_count(value: float, text: str) -> None:
    assert format_count(value) == text


def test_memory_of_this_process_grows_with_what_it_holds() -> None:
    before = memory_gb("cpu")
    block = np.ones(40_000_000)  # 0.32 GB
    assert memory_gb("cpu") >= max(before, 0.32)
    assert block[0] == 1.0


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 19.5e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 66.9e12),
        ("NVIDIA H100 PCIe", 756.5e12, 51e12),
        ("NVIDIA H100 NVL", 835.5e12, 60e12),
        ("NVIDIA H200", 989.4e12, 66.9e12),
        ("NVIDIA H200 NVL", 835.5e12, 60e12),
        ("NVIDIA B200", 2250e12, 75e12),
        ("NVIDIA L40S", 362.05e12, 91.6e12),
        ("NVIDIA A10", 125e12, 31.2e12),
        ("Tesla V100-SXM2-32GB", None, 15.7e12),
        ("Tesla V100-PCIE-16GB", None, 14e12),
        ("Tesla T4", None, 8.1e12),
        ("NVIDIA GeForce RTX 3090", 71e12, 35.6e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("NVIDIA GeForce RTX 5090", 209.5e12, 104.8e12),
    ],
)
def test_peak_of_known_devices(name: str, bf16: float | None, fp32: float) -> None:
    assert peak_flops(name, "bf16") == bf16
    assert peak_flops(name, "fp32") == fp32


@pytest.mark.parametrize(
    "name",
    [
        "cpu",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A10G",
        "NVIDIA RTX A1000",
        "NVIDIA GH200 480GB",
        "NVIDIA GB200",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA H20",
        "AMD Instinct MI300X",
    ],
)
def test_variants_and_unknown_devices_have_no_peak(name: str) -> None:
    assert peak_flops(name, "bf16") is None


def test_formats_never_exceed_each_other_wrongly() -> None:
    for name in ("NVIDIA A100-SXM4-80GB", "NVIDIA H200", "NVIDIA B200", "NVIDIA L40S", "NVIDIA A10"):
        peaks = [peak_flops(name, kind) for kind in ("fp32", "tf32", "bf16")]
        assert None not in peaks
        assert peaks == sorted(peak for peak in peaks if peak is not None)
    assert peak_flops("Tesla V100-SXM2-16GB", "fp16") == 125e12


def test_number_format_of_the_matrix_products() -> None:
    assert [number_format(p, "high") for p in ("bf16", "fp16", "fp32")] == ["bf16", "fp16", "tf32"]
    assert number_format("fp32", "highest") == "fp32"
