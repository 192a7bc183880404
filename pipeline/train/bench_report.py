"""What `pretrain bench` says: a record of the shape that the files under `benchmarks/` write, and lines for people."""

from __future__ import annotations

import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.monitor.meters import format_count
from pipeline.monitor.step_clock import PHASES
from pipeline.train.bench import Bench

_PACKAGES = ("torch", "transformers", "lightning", "deepspeed", "numpy")


def bench_record(bench: Bench, command: str) -> dict[str, Any]:
    """``{"benchmark", "machine", "versions", "command", "facts", "results", "tables"}``, all measured.

    ``results`` are without peers and goals. MFU is absent where the peak of the device is not known.
    """
    measured = bench.measured
    steps = measured.step_seconds
    milliseconds = [1000 * seconds for seconds in steps]
    results = [
        _result("real tokens per second", "tokens/s", "higher", measured.real_tokens / measured.seconds),
        _result("step, median", "ms", "lower", statistics.median(milliseconds)),
        _result("step, fastest", "ms", "lower", min(milliseconds)),
        _result("step, slowest", "ms", "lower", max(milliseconds)),
        _result("peak memory of a rank", "GB", "lower", measured.peak_memory_gb),
    ]
    if bench.mfu is not None:
        results.insert(1, _result("model FLOPs utilization", "share of the peak", "higher", bench.mfu))
    total = sum(measured.phase_seconds.values())
    rows = [
        [phase.replace("_", " "), round(1000 * seconds / len(steps), 4), round(100 * seconds / total, 2)]
        for phase in PHASES
        if (seconds := measured.phase_seconds[phase])
    ]
    return {
        "benchmark": "bench",
        "machine": _machine(bench.device),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "command": command,
        "facts": _facts(bench),
        "results": results,
        "tables": {"time": {"header": ["phase", "ms a step", "% of the time"], "rows": rows}},
    }


def _result(name: str, unit: str, better: str, value: float) -> dict[str, Any]:
    plain = float(f"{value:.4g}")
    return {
        "name": name,
        "unit": unit,
        "better": better,
        "ours": plain,
        "peers": {},
        "ratio": None,
        "goal": {},
        "met": None,
    }


def _facts(bench: Bench) -> dict[str, Any]:
    config, measured = bench.config, bench.measured
    steps = len(measured.step_seconds)
    slots = steps * bench.stage.global_batch_size * bench.stage.sequence_length
    facts = {
        "steps": steps,
        "data": "synthetic documents" if bench.synthetic else "corpus",
        "family": config.model.family,
        "parameters": bench.num_parameters,
        "ranks": bench.plan.world_size,
        "threads a rank": torch.get_num_threads(),
        "strategy": config.train.strategy,
        "precision": config.train.precision,
        "compile": config.train.compile,
        "rows a step": bench.stage.global_batch_size,
        "sequence length": bench.stage.sequence_length,
        "rows a micro-batch": bench.plan.micro_rows[bench.stage],
        "micro-batches a step and rank": bench.plan.accumulation,
        "real tokens a step": round(measured.real_tokens / steps),
        "filled slots, share": round(measured.real_tokens / slots, 4),
        "predictions a step": round(measured.predictions / steps),
        "FLOPs of a step": round(measured.flops / steps),
    }
    if bench.peak_flops_per_device is not None:
        facts["peak FLOP/s of a device"] = bench.peak_flops_per_device
    else:
        facts["mfu"] = (
            f"not given: the peak of {_device_name(bench.device)} is not known; set monitor.peak_flops_per_device"
        )
    return facts


def bench_lines(record: dict[str, Any]) -> list[str]:
    """The record as text."""
    facts = record["facts"]
    width = max(map(len, [*facts, *(result["name"] for result in record["results"])]))
    lines = [record["machine"], ", ".join(f"{name} {number}" for name, number in record["versions"].items()), ""]
    lines += [f"{name:<{width}}  {_shown(value)}" for name, value in facts.items()]
    lines.append("")
    for result in record["results"]:
        value, unit = result["ours"], result["unit"]
        if unit == "share of the peak":
            shown = f"{100 * value:.1f} %"
        else:
            shown = f"{format_count(value) if value >= 10_000 else f'{value:g}'} {unit}"
        lines.append(f"{result['name']:<{width}}  {shown}")
    lines += ["", "time of a step, rank 0"]
    lines += [
        f"  {phase:<{width - 2}}  {ms:.3f} ms  {share:.1f} %" for phase, ms, share in record["tables"]["time"]["rows"]
    ]
    return lines


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"


def _machine(device: torch.device) -> str:
    """Processor, cores and GPUs in words; no names, no paths."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text = f"{_processor()}, {os.cpu_count()} cores, {memory_gb:.0f} GB memory, {platform.system()}"
    if device.type != "cuda":
        return text
    gpu_gb = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{torch.cuda.device_count()} x {_device_name(device)} ({gpu_gb:.0f} GB); {text}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
