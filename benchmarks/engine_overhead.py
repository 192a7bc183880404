"""What DeepSpeed's engine costs on one rank, stage by stage, in a process of its own.

`python benchmarks/engine_overhead.py WORKLOAD COMPILED STEPS` prints JSON. The step is the same everywhere: the loss of
our module, clipping and AdamW; the engine is given model and optimizer and does the rest.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.our_training import OurStep
from benchmarks.record import Table, significant
from benchmarks.workload import Workload, workload_from_json, workload_to_json
from pipeline.config.run import RunConfig
from pipeline.train.faults import ended_by_sigterm

STAGES: Final = (0, 1, 2)
PLAIN: Final = "no engine"


def missing_library() -> str | None:
    """Why there is nothing to measure; None if there is."""
    return None if importlib.util.find_spec("deepspeed") else "deepspeed is not installed"


def measure_engines(workload: Workload, compiled: bool, num_steps: int) -> Table:
    """Milliseconds a step without an engine and under each stage."""
    command = [sys.executable, __file__, workload_to_json(workload), str(int(compiled)), str(num_steps)]
    # Read at DeepSpeed's first import.
    environment = {**os.environ, **({"DS_ACCELERATOR": "cpu"} if workload.hardware.device == "cpu" else {})}
    with ended_by_sigterm():  # and the process with it
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"the engines failed:\n{done.stdout[-800:]}\n{done.stderr[-1600:]}")
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    plain = seconds[PLAIN]
    rows: list[list[str | float | int]] = [
        [name, significant(1e3 * spent), "" if name == PLAIN else f"{100 * (spent / plain - 1):+.1f} %"]
        for name, spent in seconds.items()
    ]
    return Table(["engine", "ms a step", "more than without"], rows)


def main() -> None:
    """Time all engines and print the seconds of their steps."""
    workload, compiled, num_steps = workload_from_json(sys.argv[1]), bool(int(sys.argv[2])), int(sys.argv[3])
    torch.set_num_threads(workload.hardware.threads)
    _one_rank(workload.hardware.device)
    seconds = {}
    for name, stage in ((PLAIN, None), *((f"ZeRO-{stage}", stage) for stage in STAGES)):
        config = workload.config(compile=compiled)
        step = OurStep(config) if stage is None else _EngineStep(config, stage)
        seconds[name] = step.seconds_a_step(num_steps, warmup_steps=3)
        step.close()
    print(json.dumps(seconds))


def _one_rank(device: str) -> None:
    """A world of this process, for DeepSpeed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import deepspeed

    # Only its inference all-reduce uses this op, yet on a CPU it would be compiled first.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    deepspeed.init_distributed(dist_backend="gloo" if device == "cpu" else "nccl")


class _Loss(torch.nn.Module):
    """What the engine takes for its model: the forward pass is the loss of the step."""

    def __init__(self, step: OurStep) -> None:
        super().__init__()
        self.model = step.module.model
        self.loss_sum = step.loss_sum

    def forward(self, batch: Any) -> torch.Tensor:
        return self.loss_sum(batch)


class _EngineStep(OurStep):
    """DeepSpeed computes backward pass, clipping and update."""

    def __init__(self, config: RunConfig, stage: int) -> None:
        import deepspeed

        super().__init__(config)
        self.engine, *_ = deepspeed.initialize(
            model=_Loss(self),
            optimizer=self.optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": stage},
                "gradient_clipping": config.train.gradient_clip_norm,
            },
        )

    def train_step(self) -> torch.Tensor:
        batch = next(self.batches)
        loss = self.engine(batch.to(self.device)) / max(int(batch.window_predictions), 1)
        self.engine.backward(loss)
        self.engine.step()
        return loss.detach()


if __name__ == "__main__":
    main()
