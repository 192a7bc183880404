"""The training state that a rank holds, under every strategy: what it writes to a checkpoint and fills from one.

==============  ========================================================================================================
single, ddp     every rank has all of it; they deal out the writing
zero1, zero2    a stretch of the flat fp32 weights and moments of each group of the optimizer
zero3           the rank-th of W equal parts of every parameter; the last ones are padded
==============  ========================================================================================================

DeepSpeed's own checkpoints are not used: they fit the layout that wrote them. Its universal ones want a second pass
over the disk, know Adam's two moments only and give all groups the settings of the first
(``load_hp_checkpoint_state_from_checkpoint_dir_stage3`` of deepspeed 0.19.8).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.checkpoints.meta import WAY_OUT
from pipeline.checkpoints.pieces import WEIGHT, Piece
from pipeline.checkpoints.reading import CheckpointReader, misfits, some_of
from pipeline.optim.state import STEP, ParameterState, counts_steps, parameter_state, state_names
from pipeline.train.module import PretrainModule
from pipeline.train.strategies import ZERO_STAGES, engine_of


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of a flattened parameter and of its moments, live."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter."""

    offset: int
    weight: Tensor  # (n,)
    moments: dict[str, Tensor]  # (n,) each
    counter: MutableMapping[str, Any] | None
    """Where the number of steps is, under ``step``."""

    is_replicated: bool
    """Whether all ranks hold it."""

    def cut(self, first: int, last: int) -> Fragment:
        """Elements ``first`` to ``last`` of this fragment."""
        moments = {name: moment[first:last] for name, moment in self.moments.items()}
        return replace(self, offset=self.offset + first, weight=self.weight[first:last], moments=moments)

    def pieces(self) -> Iterator[Piece]:
        yield Piece(f"{WEIGHT}/{self.name}", self.shape, self.offset, self.weight.float())
        for name, moment in self.moments.items():
            yield Piece(f"{name}/{self.name}", self.shape, self.offset, moment)
        if self.offset == 0 and self.counter is not None:
            step = torch.as_tensor(self.counter[STEP], dtype=torch.float32)
            yield Piece(f"{STEP}/{self.name}", (), 0, step)


def rank_pieces(trainer: Trainer, module: PretrainModule) -> list[Piece]:
    """What this rank writes of the run's state: all ranks together each element once. Views of live tensors."""
    fragments = _fragments(trainer, module)
    own = [fragment for fragment in fragments if not fragment.is_replicated]
    shared = (fragment for fragment in fragments if fragment.is_replicated)
    dealt = _dealt(list(shared), trainer.global_rank, trainer.world_size)
    return [piece for fragment in (*own, *dealt) for piece in fragment.pieces()]


@torch.no_grad()
def restore_rank(trainer: Trainer, module: PretrainModule, reader: CheckpointReader) -> None:
    """Fill weights and optimizer of this rank, whoever wrote the checkpoint; every rank must call it.

    Raises:
        UserError: names or shapes of the checkpoint are not those of this model and this optimizer, or a weight is no
            number; on every rank.
    """
    _check_fits(reader, _expected(trainer, module))
    steps: dict[int, tuple[MutableMapping[str, Any], float]] = {}
    fragments = _fragments(trainer, module)
    for fragment in fragments:
        reader.copy_into(fragment.weight, f"{WEIGHT}/{fragment.name}", fragment.offset)
        for name, moment in fragment.moments.items():
            reader.copy_into(moment, f"{name}/{fragment.name}", fragment.offset)
        if (counter := fragment.counter) is not None:
            step = float(reader.read(f"{STEP}/{fragment.name}"))
            # Of a whole group: a parameter that never had a gradient has taken no step, the others have.
            steps[id(counter)] = counter, max(step, steps.get(id(counter), (counter, 0.0))[1])
    for counter, step in steps.values():
        if isinstance(counter[STEP], Tensor):
            counter[STEP].fill_(step)
        else:
            counter[STEP] = int(step)
    _check_finite(module, reader, fragments)
    if module.config.train.strategy in ZERO_STAGES:
        _renew_model_weights(engine_of(trainer).optimizer)


def _fragments(trainer: Trainer, module: PretrainModule) -> list[Fragment]:
    strategy = module.config.train.strategy
    if strategy not in ZERO_STAGES:
        return list(_replicated_fragments(trainer.optimizers[0], module.model))
    optimizer = engine_of(trainer).optimizer
    if strategy == "zero3":
        return list(_zero3_fragments(optimizer, module.model))
    return list(_flat_fragments(optimizer, module.model))


def _replicated_fragments(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> Iterator[Fragment]:
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():  # tied parameters come once
        group = groups.get(id(parameter))
        state = ParameterState({}, None) if group is None else parameter_state(optimizer, group, parameter)
        moments = {key: moment.view(-1) for key, moment in state.moments.items()}
        weight = parameter.detach().view(-1)
        yield Fragment(name, tuple(parameter.shape), 0, weight, moments, state.counter, is_replicated=True)


def _flat_fragments(zero: Any, model: Any) -> Iterator[Fragment]:
    """Stages 1 and 2: DeepSpeed notes at each parameter where in this rank's flat partition its elements are."""
    optimizer = zero.optimizer
    for name, parameter in model.named_parameters():
        if not hasattr(parameter, "_hp_mapping"):  # it is not trained
            yield Fragment(name, tuple(parameter.shape), 0, parameter.detach().view(-1), {}, None, is_replicated=True)
        elif (mapping := parameter._hp_mapping) is not None:
            group = optimizer.param_groups[mapping.param_group_index]
            (flat,) = group["params"]
            state = parameter_state(optimizer, group, flat)
            address = mapping.get_hp_fragment_address()
            offset, length = mapping.lp_fragment_address.start, address.numel
            yield _stretch(name, tuple(parameter.shape), offset, length, flat, address.start, state)


def _zero3_fragments(zero: Any, model: Any) -> Iterator[Fragment]:
    for name, parameter in model.named_parameters():
        offset = parameter.ds_tensor.ds_numel * parameter.ds_zero_partition_rank
        length = min(parameter.ds_tensor.ds_numel, parameter.ds_numel - offset)
        if length <= 0:  # padding
            continue
        shape = tuple(parameter.ds_shape)
        if not parameter.requires_grad:
            yield Fragment(name, shape, offset, parameter.ds_tensor[:length], {}, None, is_replicated=False)
            continue
        part, start, _ = zero.grad_position[zero.get_param_id(parameter)]
        group = zero.optimizer.param_groups[zero.sub_group_to_group_id[part]]
        flat = zero.fp32_partitioned_groups_flat[part]
        state = parameter_state(zero.optimizer, group, flat)
        yield _stretch(name, shape, offset, length, flat, start, state)


def _stretch(
    name: str, shape: tuple[int, ...], offset: int, length: int, flat: Tensor, start: int, state: ParameterState
) -> Fragment:
    """Of a flat partition, the elements from ``start`` on: they are those of a parameter from ``offset`` on."""
    moments = {key: moment[start : start + length] for key, moment in state.moments.items()}
    weight = flat.detach()[start : start + length]
    return Fragment(name, shape, offset, weight, moments, state.counter, is_replicated=False)


def _renew_model_weights(zero: Any) -> None:
    """The weights that the model computes with, of which DeepSpeed's fp32 weights are the masters."""
    if hasattr(zero, "update_lp_params"):
        zero.update_lp_params()
        return
    zero.checkpoint_event_prologue()  # lets go of gathered parameters
    for part in range(len(zero.fp32_partitioned_groups_flat)):
        zero._reassign_or_swap_out_partitioned_parameters(part)
    zero.checkpoint_event_epilogue()  # gathers again those that stay so


def _dealt(fragments: list[Fragment], rank: int, num_ranks: int) -> Iterator[Fragment]:
    """The rank's share of what all ranks hold: a stretch of all elements one after the other."""
    total = sum(fragment.weight.numel() for fragment in fragments)
    first, last = total * rank // num_ranks, total * (rank + 1) // num_ranks
    begin = 0
    for fragment in fragments:
        end = begin + fragment.weight.numel()
        if max(begin, first) < min(end, last):
            yield fragment.cut(max(begin, first) - begin, min(end, last) - begin)
        begin = end


def _expected(trainer: Trainer, module: PretrainModule) -> dict[str, tuple[int, ...]]:
    """Keys and whole shapes of the state of this model and this optimizer, the same on every rank."""
    zero = module.config.train.strategy in ZERO_STAGES
    optimizer = engine_of(trainer).optimizer.optimizer if zero else trainer.optimizers[0]
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    expected: dict[str, tuple[int, ...]] = {}
    for name, parameter in module.model.named_parameters():
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        expected[f"{WEIGHT}/{name}"] = shape
        if parameter.requires_grad:
            # ZeRO's groups hold flat partitions; optimizers that it can use treat all parameters alike.
            group = groups.get(id(parameter), optimizer.param_groups[0])
            expected |= {f"{moment}/{name}": shape for moment in state_names(optimizer, group)}
            expected |= {f"{STEP}/{name}": ()} if counts_steps(group) else {}
    return expected


def _check_fits(reader: CheckpointReader, expected: dict[str, tuple[int, ...]]) -> None:
    if problems := misfits(reader.shapes, expected):
        raise UserError(
            f"checkpoint {reader.directory} does not fit the model and the optimizer of this run: {problems}. Restore "
            "the settings that it was written with (config.yaml in the run directory), or start a new run with another "
            "run_directory."
        )


def _check_finite(module: PretrainModule, reader: CheckpointReader, fragments: list[Fragment]) -> None:
    assert module.control is not None
    broken = [fragment.name for fragment in fragments if not bool(fragment.weight.isfinite().all())]
    (num_broken,) = module.control.sum_integers(len(broken))
    if num_broken:
        raise UserError(
            f"checkpoint {reader.directory} has weights that are no numbers (NaN or infinite) in "
            f"{some_of(broken) or 'what another rank holds'}: the run diverged before it. {WAY_OUT}"
        )
