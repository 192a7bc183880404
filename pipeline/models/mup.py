"""muP: the parametrisation under which settings tuned on a narrow model hold for a wide one.

Yang et al. 2022, Tensor Programs V (https://arxiv.org/abs/2203.03466), table 8, m being width / base:

| parameter | initial weights | Adam's learning rate |
|---|---|---|
| hidden matrix (fan-in and fan-out grow with the width) | variance / m | / m |
| embedding, bias, norm | as they are | as it is |
| vocabulary weights | as they are, output / m | as it is |

The vocabulary weights are those of the embedding, so the 1/m of the output cannot go into them, and a multiplier in the
forward pass would make the exported model another one. Every family has a layer norm right before them: its scale and
shift start at 1/m of what they were and learn at 1/m of the rate. Since Adam's steps do not depend on the size of a
gradient, this is the same training, step by step, as dividing the logits by m; the exported model is the stock class.

Attention needs 1/d instead of 1/sqrt(d), d being the width of a head: it is the number of heads that grows here, and d
stays, so the stock factor is right. A config that has the base width with another d is refused.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.config.run import ModelConfig
from pipeline.models.families import FAMILIES


def mup_scales(model: nn.Module, config: ModelConfig) -> dict[str, float]:
    """Learning-rate scale of every parameter, by name, for an optimizer whose steps are as Adam's.

    Args:
        model: the stock class of ``config``; under ZeRO-3 a parameter may be an empty vector.
    """
    multiple = width_multiple(config)
    narrow = _matrices(model) | _output_norm(model, config)
    return {name: 1 / multiple if name in narrow else 1.0 for name, _ in model.named_parameters()}


@torch.no_grad()
def scale_initial_weights(model: nn.Module, config: ModelConfig) -> None:
    """Turn the stock initial weights into those of muP, in place; at the base width they stay as they are."""
    multiple = width_multiple(config)
    matrices, output_norm = _matrices(model), _output_norm(model, config)
    for name, parameter in model.named_parameters():
        if name in matrices:
            parameter.mul_(multiple**-0.5)
        elif name in output_norm:
            parameter.div_(multiple)


def width_multiple(config: ModelConfig) -> float:
    """How many times as wide as the base the model is; 1 without muP."""
    return config.hidden_size / (config.mup_base_width or config.hidden_size)


def _matrices(model: nn.Module) -> set[str]:
    tables = {id(table.weight) for table in model.modules() if isinstance(table, nn.Embedding)}
    return {
        name
        for name, parameter in model.named_parameters()
        if len(getattr(parameter, "ds_shape", parameter.shape)) > 1 and id(parameter) not in tables
    }


def _output_norm(model: nn.Module, config: ModelConfig) -> set[str]:
    prefix = FAMILIES[config.family].output_norm
    return {f"{prefix}.{name}" for name, _ in model.get_submodule(prefix).named_parameters()}
