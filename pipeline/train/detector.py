"""Which steps are bad, and where a run goes back to: functions of the losses and gradient norms of its steps, no more.

All ranks hand in the same numbers, so all come to the same decision without asking one another.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

from pipeline.config.bad_steps import BadStepsConfig

Reason = Literal["skip_steps", "loss_not_finite", "gradient_not_finite", "loss_spike", "gradient_spike"]

MAD_TO_SIGMA: Final = 1.4826
"""Standard deviation of normal noise over its median absolute deviation (Hampel 1974)."""

LOSS_FLOOR: Final = 0.05
GRADIENT_FLOOR: Final = 1.0
"""What a spike stands out of the median by, at least, as a share of it. The deviation alone can be next to nothing: on
a plateau, say, at whose end the gradient grows by half within some steps, as it should."""


def spike_limit(values: Sequence[float], factor: float, floor: float) -> float:
    """The largest value that is no spike beside ``values``: median + max(factor x robust deviation, floor x median).

    Median and MAD do not move with a few outliers, whatever their size: up to half of the values may be any number.

    Args:
        values: at least one, all finite and not negative.
        factor: in standard deviations of normal noise.
        floor: least distance from the median, as a share of it.
    """
    center = _median(sorted(values))
    deviation = _median(sorted(abs(value - center) for value in values))
    return center + max(factor * MAD_TO_SIGMA * deviation, floor * center)


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class Window:
    """The last values of a quantity.

    Args:
        length: values kept; with fewer than half of them nothing exceeds anything.
        floor: of :func:`spike_limit`.
    """

    def __init__(self, length: int, floor: float, values: Iterable[float] = ()) -> None:
        self.length = length
        self.floor = floor
        self.values: deque[float] = deque()
        self._ordered: list[float] = []
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        if len(self.values) == self.length:
            del self._ordered[bisect.bisect_left(self._ordered, self.values.popleft())]
        self.values.append(value)
        bisect.insort(self._ordered, value)

    def is_spike(self, value: float, factor: float) -> bool:
        """Whether ``value`` is above the limit that the window sets."""
        if 2 * len(self.values) < self.length:
            return False
        # Nearly every value is below the floor, and the deviation need not be known.
        if value <= (1 + self.floor) * _median(self._ordered):
            return False
        return value > spike_limit(self._ordered, factor, self.floor)


class Detector:
    """Judges steps in their order, and knows which were skipped.

    Args:
        skip_steps: ``train.skip_steps``.
        stage_of: a number for the stage of a step; where it changes, losses and norms have another level.
        scaled: fp16: a gradient that is not finite is no bad step, but asks for a smaller scale of the loss.
    """

    def __init__(
        self,
        config: BadStepsConfig,
        skip_steps: Iterable[int],
        stage_of: Callable[[int], int] = lambda step: 0,
        scaled: bool = False,
    ) -> None:
        self.config = config
        self.told = frozenset(skip_steps)
        self.stage_of = stage_of
        self.scaled = scaled
        self.in_a_row = 0
        self.skipped: list[tuple[int, int]] = []
        """First and last step of every stretch whose steps are not in the weights; in order, apart."""
        self.rollbacks: list[tuple[int, int]] = []
        """(checkpoint, last step before the run went back to it)."""
        self._stage: int | None = None
        self._clear_windows()

    @property
    def needs_numbers(self) -> bool:
        """Whether a decision depends on the loss or the norm."""
        return self.config.nonfinite or self.looks_for_spikes

    @property
    def looks_for_spikes(self) -> bool:
        return self.config.spike_factor is not None

    @property
    def wants_rollback(self) -> bool:
        """Whether enough bad steps have come in a row."""
        return 0 < self.config.rollback_after <= self.in_a_row

    def observe(self, step: int, loss: float, gradient_norm: float) -> Reason | None:
        """Judge ``step`` (from 1), the next one: why it is skipped, or None if it is taken.

        Args:
            loss: mean over the predictions of the global batch.
            gradient_norm: global, before clipping.
        """
        reason = self._judge(step, loss, gradient_norm)
        if reason is not None:
            # A step that was named beforehand says nothing of the run.
            self.in_a_row += reason != "skip_steps"
            self._skip(step, step)
            return reason
        self.in_a_row = 0
        if self.looks_for_spikes and math.isfinite(loss) and math.isfinite(gradient_norm):
            self.losses.add(loss)
            self.norms.add(gradient_norm)
        return None

    def _judge(self, step: int, loss: float, gradient_norm: float) -> Reason | None:
        if step in self.told:
            return "skip_steps"
        if not math.isfinite(loss):
            return "loss_not_finite" if self.config.nonfinite else None
        if not math.isfinite(gradient_norm):
            return "gradient_not_finite" if self.config.nonfinite and not self.scaled else None
        factor = self.config.spike_factor
        if factor is None:
            return None
        if (stage := self.stage_of(step)) != self._stage:
            self._stage = stage
            self._clear_windows()
        if self.losses.is_spike(loss, factor):
            return "loss_spike"
        return "gradient_spike" if self.norms.is_spike(gradient_norm, factor) else None

    def rollback_target(self, saved_steps: Iterable[int], now: int) -> int | None:
        """The checkpoint to go back to after step ``now``; None: there is none that could help.

        That is the newest with ``rollback_steps`` steps behind it which are in the weights; if all are nearer, the
        oldest. A checkpoint that an earlier rollback has gone back behind is of weights that were given up.
        """
        distances = {
            step: distance
            for step in saved_steps
            if step < now
            and not any(target < step < given_up for target, given_up in self.rollbacks)
            and (distance := self.num_taken(step, now)) > 0
        }
        far = [step for step, distance in distances.items() if distance >= self.config.rollback_steps]
        return max(far) if far else min(distances, default=None)

    def num_taken(self, after: int, until: int) -> int:
        """How many of the steps ``after + 1`` to ``until`` are in the weights."""
        skipped = (min(last, until) - max(first, after + 1) + 1 for first, last in self.skipped)
        return until - after - sum(max(number, 0) for number in skipped)

    def roll_back(self, target: int, now: int, state_then: dict[str, Any]) -> None:
        """The weights are those of checkpoint ``target`` again, and the next step is ``now`` + 1.

        Args:
            state_then: :meth:`state` as ``target`` has it. What is measured goes on from there too, so that all is as
                if the steps in between had been named in ``skip_steps``.
        """
        rollbacks = [*self.rollbacks, (target, now)]
        self.restore(state_then)
        self._skip(target + 1, now)
        self.rollbacks = rollbacks

    def _skip(self, first: int, last: int) -> None:
        if self.skipped and self.skipped[-1][1] >= first - 1:
            first = self.skipped.pop()[0]
        self.skipped.append((first, last))

    def state(self) -> dict[str, Any]:
        """Everything a later decision depends on, as JSON values."""
        return {
            "in_a_row": self.in_a_row,
            "skipped": [list(stretch) for stretch in self.skipped],
            "rollbacks": [list(rollback) for rollback in self.rollbacks],
            "stage": self._stage,
            "losses": list(self.losses.values),
            "gradient_norms": list(self.norms.values),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`; an empty one is that of a run's beginning."""
        self.in_a_row = state.get("in_a_row", 0)
        self.skipped = [(first, last) for first, last in state.get("skipped", ())]
        self.rollbacks = [(target, given_up) for target, given_up in state.get("rollbacks", ())]
        self._stage = state.get("stage")
        self._clear_windows(state.get("losses", ()), state.get("gradient_norms", ()))

    def _clear_windows(self, losses: Iterable[float] = (), norms: Iterable[float] = ()) -> None:
        self.losses = Window(self.config.spike_window, LOSS_FLOOR, losses)
        self.norms = Window(self.config.spike_window, GRADIENT_FLOOR, norms)
