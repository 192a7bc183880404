"""Stochastic rounding of fp32 to bf16: up or down, with probabilities that make the mean exact (Gupta et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

_LOWER_BITS = 16  # of fp32's 32 that bf16 does not have


class StochasticRounding:
    """Rounds with bits from a generator of its own, so torch's global generators are left as they are."""

    def __init__(self) -> None:
        self._seed = 0
        self._generators: dict[torch.device, torch.Generator] = {}

    def reseed(self, step: int, group: int, chunk: int) -> None:
        """Begin the bits of a place in a step; they depend on these three numbers and the kind of device alone."""
        # A digest: the generator of the CPU takes the lower 32 bits of a seed only.
        digest = blake2b(f"{step} {group} {chunk}".encode(), digest_size=8).digest()
        self._seed = int.from_bytes(digest, "little")
        for generator in self._generators.values():
            generator.manual_seed(self._seed)

    def store(self, targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Write fp32 ``values`` into bf16 ``targets``.

        A finite value between two numbers of bf16 becomes the upper one with a probability of its distance from the
        lower one; numbers of bf16, infinities and NaN stay what they are.
        """
        for target, value in zip(targets, values, strict=True):
            bits = value.float().contiguous().view(torch.int32)
            noise = torch.empty_like(bits).random_(0, 2**_LOWER_BITS, generator=self._generator(value.device))
            # Sign and magnitude stand apart in a float's bits: adding to them moves it away from zero.
            rounded = noise.add_(bits).bitwise_and_(-(2**_LOWER_BITS)).view(torch.float32).view_as(value)
            # Beyond infinity the sum overflows: a GPU's NaN, 0x7fffffff, would become -0.
            target.copy_(torch.where(value.isfinite(), rounded, value))

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]
