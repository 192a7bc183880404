"""The loss of a vocabulary head, chunk by chunk: the logits of all positions never exist at once.

Letters: P positions, C of them in a chunk, E width, V vocabulary, U the same, rounded up to a multiple of 64.

Of a chunk, the logits, the loss and all three gradients are computed in the forward pass, and nothing but sums is kept
(Hsu et al. 2024, "Liger Kernel", section 3.2; the idea of not storing logits is also that of Wijmans et al. 2024, "Cut
your losses in large-vocabulary language models"). The backward pass only multiplies by the gradient of the loss.

torch's own ``linear_cross_entropy`` has such a path from 2.13 on, as one opaque operator, whose passes a compiler
cannot fuse; ``benchmarks/head.py`` measures both.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

IGNORED: Final = -100
"""Label of a position that is not predicted: torch's ``ignore_index``."""

_NAME: Final = "head_loss"

VOCABULARY_MULTIPLE: Final = 64
"""Rows of the weight are padded to this: matrix kernels of GPUs want aligned rows of logits."""

# Logits of a chunk, at most. On a CPU a product of fewer positions (500 of GPT-2) reads the weight too often for its
# work. On a GPU a chunk is so long (5,000 positions of GPT-2) that adding its share to the gradient of the weight, a
# pass over V x E, costs little beside its products.
_CHUNK_BYTES: Final = {"cpu": 96 << 20, "cuda": 512 << 20}

# Logits whose softmax a CPU computes at once: they stay in its cache, and below 32 MiB, from where on glibc returns
# freed memory to the system.
_SOFTMAX_BYTES: Final = 8 << 20

# Products of bf16 are emulated on CPUs without an instruction for them, and are there 40 times slower than fp32.
_CPU_HAS_BF16: Final = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()


class HeadLoss:
    """The forward of the head's last linear layer: as stock, or, while labels are set, the sum of the losses.

    Set in the place of the layer's own, on the instance: so the weight is used inside the module that owns it, where
    ZeRO-3 has gathered it, and the stock model around it hands the result on as its "logits". An object, not a closure,
    so that copying a model copies the link between the two places that hold it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.labels: Tensor | None = None
        self.counts_hits = False
        """Whether the forward also counts how many labels are the likeliest of all; only where there are no gradients,
        since it costs a pass over the logits."""

        self.hits: Tensor | None = None
        """Of the last forward that counted: labels that are the likeliest of all, and labels, int64 (2,)."""

    def forward(self, hidden: Tensor) -> Tensor:
        weight, bias = self.linear.weight, self.linear.bias
        if self.labels is None:
            return nn.functional.linear(hidden, weight, bias)
        hidden = hidden.flatten(0, -2)
        if not self.counts_hits:
            return linear_cross_entropy_sum(hidden, weight, bias, self.labels)
        loss, self.hits = linear_cross_entropy_sum_and_hits(hidden, weight, bias, self.labels)
        return loss


def install_head_loss(model: nn.Module, linear: Any, in_head: bool = True) -> None:
    """Have the last layer of a model's head, a linear one, compute the loss while it is given labels.

    Args:
        in_head: else the loss is made of the logits, by who has them (``hooks.loss_of_logits``).
    """
    loss = HeadLoss(linear)
    if in_head:
        linear.forward = loss.forward
    setattr(model, _NAME, loss)


def head_loss_of(model: nn.Module) -> HeadLoss:
    """What computes the loss in the head of a model."""
    loss: HeadLoss = getattr(model, _NAME)
    return loss


def linear_cross_entropy_sum(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk_bytes: int | None = None
) -> Tensor:
    """Sum over the positions of ``cross_entropy(hidden @ weight.T + bias, labels)``.

    Under autocast the products are computed in its dtype, reductions in fp32 at least.

    Args:
        hidden: (P, E).
        weight: (V, E).
        bias: (V,).
        labels: int64 (P,); :data:`IGNORED` is not counted and has no gradient.
        chunk_bytes: logits of a chunk, at most; default: what suits the device.

    Returns:
        Scalar, fp32 (fp64 for fp64). Its gradient can be taken once, and not differentiated again.
    """
    dtype, num_rows = _chunks(hidden, weight, labels, chunk_bytes)
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.is_grad_enabled():
            return _LinearCrossEntropySum.apply(hidden, weight, bias, labels, dtype, num_rows)
        return _loss_and_gradients(hidden, weight, bias, labels, dtype, num_rows, with_gradients=False)[0]


def linear_cross_entropy_sum_and_hits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk_bytes: int | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`linear_cross_entropy_sum` without gradients, and how many labels have the largest logit of their position
    (of equal ones the first), and of how many: int64 (2,)."""
    dtype, num_rows = _chunks(hidden, weight, labels, chunk_bytes)
    hits: list[Tensor] = []
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        loss = _loss_and_gradients(hidden, weight, bias, labels, dtype, num_rows, with_gradients=False, hits=hits)[0]
        return loss, hits_of(torch.cat(hits) if hits else labels, labels)


def hits_of(guesses: Tensor, labels: Tensor) -> Tensor:
    """How many guesses (P,) are the labels (P,), and of how many that count: int64 (2,)."""
    counted = labels != IGNORED
    return torch.stack([((guesses == labels) & counted).sum(), counted.sum()])


def _chunks(hidden: Tensor, weight: Tensor, labels: Tensor, chunk_bytes: int | None) -> tuple[torch.dtype, int]:
    """The dtype of the products, and the positions of a chunk."""
    dtype = _product_dtype(hidden)
    row_bytes = _padded_size(len(weight)) * dtype.itemsize
    most = max(1, (chunk_bytes or _CHUNK_BYTES.get(hidden.device.type, _CHUNK_BYTES["cuda"])) // row_bytes)
    num_chunks = max(1, -(-len(labels) // most))
    return dtype, max(1, -(-len(labels) // num_chunks))  # chunks of one size: no short last one


class _LinearCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, dtype: torch.dtype, num_rows: int
    ) -> Tensor:
        loss, *gradients = _loss_and_gradients(hidden, weight, bias, labels, dtype, num_rows, with_gradients=True)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        factor = scale.view(1)  # CUDA would round a scalar to bf16 first, and with it every gradient of the step
        if torch.compiler.is_compiling():
            scaled = (None if saved is None else (saved * factor).to(saved.dtype) for saved in ctx.saved_tensors)
        else:
            # In place, to spare the memory of a second gradient; autograd refuses a second backward pass after it.
            scaled = (None if saved is None else saved.mul_(factor) for saved in ctx.saved_tensors)
        return (*scaled, None, None, None)


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    dtype: torch.dtype,
    num_rows: int,
    with_gradients: bool,
    hits: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The loss and the gradients of hidden (P, E), weight (V, E) and bias (V,), each in the dtype of its tensor.

    Args:
        hits: takes the likeliest classes, chunk by chunk, (C,).
    """
    exact = torch.promote_types(dtype, torch.float32)
    vocabulary = len(weight)
    padding = _padded_size(vocabulary) - vocabulary
    padded = pad(weight.to(dtype), (0, 0, 0, padding)) if padding else weight.to(dtype)  # U E
    shift = None if bias is None else pad(bias.to(exact), (0, padding), value=float("-inf"))  # U
    loss = torch.zeros((), dtype=exact, device=hidden.device)
    of_hidden: list[Tensor] = []
    of_weight: Tensor | None = None
    of_bias: Tensor | None = None
    memory: Tensor | None = None
    for inputs, targets in zip(hidden.to(dtype).split(num_rows), labels.split(num_rows), strict=True):
        if torch.compiler.is_compiling():
            logits = inputs @ padded.T  # C U
        else:  # the same memory for every chunk
            memory = inputs.new_empty(len(inputs), len(padded)) if memory is None else memory
            logits = torch.mm(inputs, padded.T, out=memory[: len(inputs)])  # C U
        counted = (targets != IGNORED)[:, None]  # C 1
        index = torch.where(counted, targets[:, None], 0)  # C 1
        chosen, of_logits = _softmax(logits, index, vocabulary, shift, exact, with_gradients, hits)  # C 1, C U
        loss = loss - torch.where(counted, chosen, 0).sum()
        if not with_gradients:
            continue
        of_hidden.append(torch.where(counted, of_logits @ padded, 0).to(hidden.dtype))  # C E
        # Positions that do not count are masked in the narrow factor, not in the C x U one.
        of_weight = _add_product(of_weight, of_logits, torch.where(counted, inputs, 0), exact)  # U E
        if shift is not None:
            of_bias = _add_product(of_bias, of_logits, counted.to(dtype), exact)  # U 1
    if not with_gradients:
        return loss, None, None, None
    assert of_weight is not None
    return (
        loss,
        torch.cat(of_hidden),
        of_weight[:vocabulary].to(weight.dtype),
        None if bias is None or of_bias is None else of_bias[:vocabulary, 0].to(bias.dtype),
    )


def _softmax(
    logits: Tensor,
    index: Tensor,
    vocabulary: int,
    shift: Tensor | None,
    exact: torch.dtype,
    with_gradients: bool,
    hits: list[Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Logarithms of the probabilities of the classes ``index`` (C, 1), and the gradient of the logits (C, U).

    Args:
        logits: (C, U), without the bias; eagerly their memory is given to the gradient.
        shift: the bias, minus infinity in the padding, (U,); None: there is no bias.
        hits: takes the likeliest classes, (C,), of one part after the other.
    """
    num_rows = len(logits)
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        num_rows = max(1, _SOFTMAX_BYTES // (logits.shape[1] * exact.itemsize))
    chosen, gradients = [], []
    for part, classes in zip(logits.split(num_rows), index.split(num_rows), strict=True):
        scores = part.to(exact)
        if shift is not None:
            scores.add_(shift)
        elif vocabulary < logits.shape[1]:
            scores[:, vocabulary:] = float("-inf")
        log_probabilities = torch.log_softmax(scores, -1)
        chosen.append(log_probabilities.gather(1, classes))
        if hits is not None:
            hits.append(scores.argmax(-1))
        if with_gradients:
            gradients.append(_gradient_of_logits(log_probabilities, classes, part))
    # Several parts are never compiled, and then the gradient has taken the place of the logits.
    return torch.cat(chosen), gradients[0] if len(gradients) == 1 else logits


def _gradient_of_logits(log_probabilities: Tensor, index: Tensor, logits: Tensor) -> Tensor:
    """softmax - one_hot(index), exactly 0 in the padding, (C, U); eagerly it takes the memory of ``logits``."""
    if torch.compiler.is_compiling():  # one fused pass
        classes = torch.arange(logits.shape[1], device=index.device)  # U
        return (log_probabilities.exp() - (classes == index).to(log_probabilities.dtype)).to(logits.dtype)
    minus_one = torch.full_like(index, -1, dtype=log_probabilities.dtype)  # C 1
    if logits.dtype == log_probabilities.dtype:
        return torch.exp(log_probabilities, out=logits).scatter_add_(1, index, minus_one)
    return logits.copy_(log_probabilities.exp_().scatter_add_(1, index, minus_one))


def _add_product(total: Tensor | None, of_logits: Tensor, inputs: Tensor, exact: torch.dtype) -> Tensor:
    """``total + of_logits.T @ inputs``.

    The sum over chunks is kept in fp32 at least: in bf16 every further chunk would be rounded to the size of the sum.
    """
    if total is None:
        return (of_logits.T @ inputs).to(exact)
    if inputs.dtype == exact:
        return total.addmm_(of_logits.T, inputs)
    return total.add_(of_logits.T @ inputs)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype in which autocast would compute a linear layer, or one that is faster and more exact."""
    device = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    slow = device == "cpu" and (dtype == torch.float16 or (dtype == torch.bfloat16 and not _CPU_HAS_BF16))
    return torch.float32 if slow else dtype


def _padded_size(vocabulary: int) -> int:
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
