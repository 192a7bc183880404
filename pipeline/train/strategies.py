"""Strategies by name, each on CPU (gloo) and CUDA (nccl).

Under every strategy the correct gradient comes from one formula, ``cross-entropy sum x ranks x micro-batches / global
predictions``: the step loop divides by the micro-batches, the strategy averages over the ranks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy

from pipeline.base.errors import UserError
from pipeline.base.ranks import RankFacts
from pipeline.config.run import TrainConfig
from pipeline.train.environment import RankEnvironment
from pipeline.train.precision import make_precision

ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}

_BUCKET_ELEMENTS = 500_000_000  # DeepSpeed's default; it allocates the buffer whole, so a small model gets a small one


def resolve_device(train: TrainConfig, facts: RankFacts) -> torch.device:
    """``auto`` -> CUDA where there is one.

    Raises:
        UserError: CUDA asked for and absent, fewer GPUs than ranks, or fp16 on a CPU.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if train.device == "cuda" and not num_gpus:
        raise UserError("train.device: `cuda`, but torch finds no CUDA device here; use `cpu` or `auto`.")
    if train.device == "cpu" or not num_gpus:
        if train.precision == "fp16":
            raise UserError("train.precision: `fp16` needs CUDA and this run is on a CPU; use `bf16` or `fp32`.")
        if train.offload_optimizer:
            raise UserError(
                "train.offload_optimizer: this run is on a CPU, where the optimizer state is in the host's memory "
                "already; leave it out."
            )
        return torch.device("cpu")
    # One visible GPU a task (SLURM's --gpus-per-task) or all of the node's.
    index = 0 if num_gpus == 1 and facts.launcher == "slurm" else facts.local_rank
    if index >= num_gpus:
        raise UserError(
            f"this node runs {facts.local_world_size} ranks but torch sees {num_gpus} GPUs: "
            f"start {num_gpus} ranks a node."
        )
    return torch.device("cuda", index)


def make_strategy(train: TrainConfig, facts: RankFacts, device: torch.device, num_parameters: int) -> Strategy:
    """The Lightning strategy named by ``train.strategy``.

    Args:
        num_parameters: bounds DeepSpeed's communication buffers.
    """
    if train.strategy == "single":
        return SingleDeviceStrategy(device=device, precision_plugin=make_precision(train, device, zero=False))
    environment = RankEnvironment(facts)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if train.strategy == "ddp":
        return _IndexedDDPStrategy(
            device,
            cluster_environment=environment,
            process_group_backend=backend,
            precision_plugin=make_precision(train, device, zero=False),
            gradient_as_bucket_view=True,
        )
    return _make_zero_strategy(train, device, environment, backend, num_parameters)


def _make_zero_strategy(
    train: TrainConfig, device: torch.device, environment: RankEnvironment, backend: str, num_parameters: int
) -> Strategy:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read at deepspeed's first import
    import deepspeed

    # Only its inference all-reduce uses this op, yet on CPU it would be compiled (g++, ninja) before the first step.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    bucket = min(_BUCKET_ELEMENTS, max(num_parameters + num_parameters % 2, 2))  # DeepSpeed wants an even number
    stage = ZERO_STAGES[train.strategy]
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": device.type == "cuda",
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if train.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = train.zero3_persistence_threshold
        del zero["allgather_bucket_size"]
    return ZeroStrategy(
        device,
        cluster_environment=environment,
        process_group_backend=backend,
        precision_plugin=make_precision(train, device, zero=True),
        config={
            "train_micro_batch_size_per_gpu": 1,  # logging only; the loader decides
            "zero_allow_untested_optimizer": True,
            # Offloaded, DeepSpeed asks for its own Adam, which a compiler makes at the first start; torch's fused AdamW
            # runs on a CPU too.
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
            # A sum in bf16 would round the gradient of every micro-batch to the size of the whole.
            "data_types": {"grad_accum_dtype": "fp16" if train.precision == "fp16" else "fp32"},
            "gradient_clipping": train.gradient_clip_norm,  # explicit: DeepSpeed alone clips at 1.0 by default
        },
        hysteresis=1,  # fp16: every infinite gradient halves the loss scale, as torch's scaler does; the default is 2
    )


def engine_of(trainer: Trainer) -> Any:
    """DeepSpeed's engine, under a ZeRO strategy."""
    return trainer.strategy.model


def ask_before_step(engine: Any, admits: Callable[[torch.Tensor], bool]) -> None:
    """Have DeepSpeed ask ``admits`` about the gradient norm of every step, and drop the step where the answer is no.

    It is asked where the norm is known and nothing has moved. A norm of infinity takes DeepSpeed's own way out: the
    gradients are dropped wherever the stage keeps them, and fp16's loss scale falls. What DeepSpeed drops by itself, it
    may drop before the norm is computed: then nobody is asked.

    Args:
        admits: gets the norm before clipping, without the loss scale; every rank gets the same.
    """
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    optimizer = engine.optimizer
    if isinstance(optimizer, BF16_Optimizer):  # zero1 in bf16, whose gradients are summed in fp32
        _ask_at_gradients(optimizer, admits)
    elif engine.zero_optimization_stage() == ZERO_STAGES["zero3"]:
        _ask_at_norms_of_groups(optimizer, admits)
    else:
        _ask_at_norm(optimizer, admits)


def _ask_at_norm(optimizer: Any, admits: Callable[[torch.Tensor], bool]) -> None:
    global_norm = optimizer.scaled_global_norm

    def judged() -> torch.Tensor:
        norm = global_norm()
        return norm if admits(norm / optimizer.loss_scale) else torch.full_like(norm, math.inf)

    optimizer.scaled_global_norm = judged


def _ask_at_norms_of_groups(optimizer: Any, admits: Callable[[torch.Tensor], bool]) -> None:
    from deepspeed.runtime.utils import combine_grad_norm_groups

    norms_of_groups = optimizer._get_norm_groups

    def judged() -> list[torch.Tensor]:
        norms = norms_of_groups()
        norm = combine_grad_norm_groups(norms)
        return norms if admits(norm / optimizer.loss_scale) else [torch.full_like(norm, math.inf)]

    optimizer._get_norm_groups = judged


def _ask_at_gradients(optimizer: Any, admits: Callable[[torch.Tensor], bool]) -> None:
    """The norm is computed inside the step, from gradients that a method hands out: here it hands out their norm."""
    from deepspeed.runtime.utils import get_global_norm_of_tensors

    gradients_for_norm = optimizer.get_grads_for_norm

    def judged(for_clipping: bool = False) -> Any:
        if for_clipping:
            return gradients_for_norm(for_clipping=True)
        gradients, of_experts = gradients_for_norm()
        norm = get_global_norm_of_tensors(gradients)
        norm = norm.where(norm >= 0, math.inf)  # -1 stands for what is not finite
        return [norm if admits(norm) else torch.full_like(norm, math.inf)], of_experts

    optimizer.get_grads_for_norm = judged


class _IndexedDDPStrategy(DDPStrategy):
    """DDP whose root device is the one resolved for this rank, also where a task sees only its own GPU."""

    def __init__(self, device: torch.device, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rank_device = device

    @property
    def root_device(self) -> torch.device:
        return self._rank_device


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy, also on CPU with gloo."""

    def __init__(self, device: torch.device, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # DeepSpeed reads `root_device.index`; None breaks it.
        self._rank_device = torch.device("cpu", 0) if device.type == "cpu" else device

    @property
    def root_device(self) -> torch.device:
        return self._rank_device

    def setup_environment(self) -> None:
        # Lightning refuses every accelerator but CUDA here, then does the two steps below.
        assert self.accelerator is not None
        self.accelerator.setup_device(self.root_device)
        self.setup_distributed()

    def setup_distributed(self) -> None:
        # Lightning's check of CUDA indices is left out: our ranks' devices are resolved above.
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def teardown(self) -> None:
        engine: Any = self.model
        super().teardown()
        if hasattr(engine, "destroy"):
            engine.destroy()  # hooks and buffers would outlive the run in this process
