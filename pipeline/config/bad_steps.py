"""The section `train.bad_steps`: which steps change no weight, and when the run goes back to a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BadStepsConfig:
    """Steps that are not taken: weights and optimizer stay as they were, `events.jsonl` names the step's documents."""

    nonfinite: bool = True
    """Skip a step whose loss or gradient is not finite on any rank. DeepSpeed skips infinite gradients in any case;
    with `fp16` they are the loss scale's business and no bad steps."""

    spike_factor: float | None = None
    """Skip a step whose loss or gradient norm is above median + spike_factor x 1.4826 x MAD of the last steps taken
    (for normal noise: so many standard deviations). Default: off. Where spikes are the trouble, begin with 10."""

    spike_window: int = 128
    """Steps taken that the median is of, within a stage; nothing is a spike before half of them are there."""

    rollback_after: int = 10
    """After so many bad steps in a row the run goes back to a checkpoint, and the steps in between are skipped; 0:
    never."""

    rollback_steps: int = 100
    """Steps taken that a rollback gives up, at least: the trouble began before it showed. If no checkpoint is so far
    back, the oldest is taken."""
