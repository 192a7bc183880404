"""What our own optimizers share: state of chosen precision, updates of many tensors a call, steps counted in groups.

An update runs over lists of tensors (``torch._foreach_*``): a kernel for many parameters instead of several for each.
The lists are cut: on a GPU so that temporary memory stays small against the model; on a CPU, where a call costs little
and memory much, so that all operations on a list find it in the cache.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.optim.rounding import StochasticRounding

_CHUNK_ELEMENTS = 2**25
"""Elements that are updated at a time, or one tensor that must be whole: 128 MiB of fp32 for each temporary list."""

_CPU_CHUNK_ELEMENTS = 2**16
"""The same on a CPU: five lists of 256 KiB."""


class ForeachOptimizer(Optimizer):
    """An optimizer whose state is some moments of every parameter and the number of steps of every group.

    Moments are computed in the parameter's precision. Kept in bf16, they are rounded stochastically: rounded to the
    nearest, a second moment with a decay of 0.999 would stand still, since a step changes it by less than half of the
    last of bf16's 8 bits. The random bits are a function of step, group and place alone, so all replicas of the model
    round alike and a resumed run goes on as if it had not been stopped.
    """

    moments: ClassVar[tuple[str, ...]]
    """Names of the state tensors of a parameter."""

    elementwise: ClassVar[bool] = False
    """Every element is updated by itself, so long tensors are cut: ZeRO gives a slice of the whole model as one."""

    def __init__(
        self, groups: list[dict[str, Any]], defaults: dict[str, Any], state_dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(groups, {"step": 0, **defaults})
        self.state_dtype = state_dtype
        self._rounding = StochasticRounding()

    @abstractmethod
    def update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], *moments: Any) -> None:
        """One step of some parameters of a group, in place; ``group["step"]`` counts it already.

        Args:
            moments: for each name of :attr:`moments` a list of tensors, to be updated in place.
        """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters with a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group_number, group in enumerate(self.param_groups):
            members = [parameter for parameter in group["params"] if parameter.grad is not None]
            group["step"] += bool(members)
            for chunk_number, chunk in enumerate(_chunks(self._rows(members))):
                parameters, gradients, *stored = map(list, zip(*chunk, strict=True))
                computed = [
                    [moment.to(p.dtype) for moment, p in zip(kept, parameters, strict=True)] for kept in stored
                ]  # `to` gives the stored tensor itself where it has the parameter's precision
                self.update(group, parameters, gradients, *computed)
                if self.state_dtype == torch.bfloat16:
                    self._rounding.reseed(group["step"], group_number, chunk_number)
                    for kept, exact in zip(stored, computed, strict=True):
                        self._rounding.store(kept, exact)
        return loss

    def moments_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter by name; zeros before its first step."""
        state = self.state[parameter]
        for name in self.moments:
            if name not in state:
                state[name] = torch.zeros_like(parameter, dtype=self._dtype_of(parameter))
        return {name: state[name] for name in self.moments}

    def _rows(self, parameters: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """(parameter, gradient, stored moments ...) of every parameter, or of every piece of one."""
        for parameter in parameters:
            row: tuple[Any, ...] = (parameter, parameter.grad, *self.moments_of(parameter).values())
            most = _most_elements(parameter)
            if self.elementwise and parameter.numel() > most:
                tensors = [tensor.detach() for tensor in row]
                if all(tensor.is_contiguous() for tensor in tensors):
                    tensors = [tensor.view(-1) for tensor in tensors]
                length = max(most * len(tensors[0]) // parameter.numel(), 1)
                yield from zip(*(tensor.split(length) for tensor in tensors), strict=True)
            else:
                yield row

    def _dtype_of(self, parameter: Tensor) -> torch.dtype:
        return torch.bfloat16 if self.state_dtype == torch.bfloat16 else parameter.dtype


def _chunks(rows: Iterable[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """The rows in their order, in lists of parameters with no more elements than a device is given, or of one row."""
    chunk: list[tuple[Tensor, ...]] = []
    num_elements = 0
    for row in rows:
        if chunk and num_elements + row[0].numel() > _most_elements(row[0]):
            yield chunk
            chunk, num_elements = [], 0
        chunk.append(row)
        num_elements += row[0].numel()
    if chunk:
        yield chunk


def _most_elements(parameter: Tensor) -> int:
    return _CPU_CHUNK_ELEMENTS if parameter.device.type == "cpu" else _CHUNK_ELEMENTS
