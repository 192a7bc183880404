"""Muon (Jordan et al. 2024; Liu et al. 2025, Muon is scalable for LLM training) for the matrices of the blocks, AdamW
for the rest, as one optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class MuonWithAdamW(Optimizer):
    """Torch's Muon on the groups with ``rule`` "muon", torch's AdamW on those with "adamw".

    Both work on this object's groups and state, so a schedule, a checkpoint or a gradient scaler sees one optimizer.
    Muon's steps are scaled by 0.2 sqrt(max(rows, columns)), which gives them the size of AdamW's ("match_rms_adamw",
    Liu et al. 2025, section 2.2), so one learning rate and one weight decay serve both.

    Args:
        groups: with ``lr_scale``, ``weight_decay`` and ``rule``.
        momentum: of Muon, with Nesterov's look ahead.
        betas, epsilon: of AdamW.
        fused: AdamW's one kernel for all parameters.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        epsilon: float,
        fused: bool,
    ) -> None:
        self._rules: dict[str, Optimizer] = {}
        by_rule = {rule: [group for group in groups if group["rule"] == rule] for rule in ("muon", "adamw")}
        if by_rule["muon"]:
            self._rules["muon"] = torch.optim.Muon(
                by_rule["muon"], lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw"
            )
        if by_rule["adamw"]:
            self._rules["adamw"] = torch.optim.AdamW(by_rule["adamw"], lr=lr, betas=betas, eps=epsilon, fused=fused)
        # The groups are the same dicts, by now with the settings of their rule.
        super().__init__([group for rule in self._rules.values() for group in rule.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters with a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, rule in self._rules.items():
            # Anew in every step: loading a checkpoint replaces groups and state.
            rule.param_groups = [group for group in self.param_groups if group["rule"] == name]
            rule.state = self.state
            rule.step()
        return loss
