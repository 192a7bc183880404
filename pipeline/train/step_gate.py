"""What is asked before the optimizer moves."""

from __future__ import annotations

from torch import Tensor


class StepGate:
    """Lets every step pass; `bad_steps.py` has one that looks at it."""

    def losses_computed(self, loss_sums: tuple[Tensor, ...]) -> None:
        """This rank's sums of a step are there, of every term of the loss, before the last backward pass.

        Args:
            loss_sums: fp32 scalars without a graph.
        """

    def admits(self, gradient_norm: Tensor) -> bool:
        """Whether the step may be taken, as the host knows it; every rank calls it and gets the same answer.

        Args:
            gradient_norm: scalar, of the reduced gradients before clipping.
        """
        return True

    @property
    def has_refused(self) -> bool:
        """Whether this rank has said no to the step before."""
        return False
