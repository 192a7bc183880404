"""What is installed on a stock model, and taken off by nothing: hooks that choose rows, set positions, find pairs.

Letters: T tokens of the packed row, P predicted positions, V vocabulary, K segments, E width of the model, R rows of S
slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.models.blocks import transformer_blocks
from pipeline.models.families import FAMILIES, Family
from pipeline.models.head_loss import IGNORED, head_loss_of, install_head_loss
from pipeline.models.last_block import narrow_last_block

SELECT_NAME: Final = "select_rows"
TABLES_NAME: Final = "position_tables"
PAIRS_NAME: Final = "select_pairs"
FAMILY_NAME: Final = "family_entry"
NARROW_NAME: Final = "last_block_is_narrow"


class SelectRows:
    """A forward pre-hook of the head's first module: it passes on the hidden states of the predicted positions only.

    Most stock classes have no argument for this, and computing all logits costs more memory than the whole encoder. An
    object, not a closure, so that copying a model copies the link between the two places that hold it.
    """

    def __init__(self) -> None:
        self.positions: Tensor | None = None
        self.keeps_hidden = False
        self.hidden: Tensor | None = None
        """What the head was given last, (1, P, E), if asked for."""

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden, *rest = arguments
        if self.positions is not None:
            if hidden.shape[0] > 1:  # padded rows
                hidden = hidden.flatten(0, 1)[None]  # 1 R*S E
            # Backward this adds whole rows; `hidden[:, positions]`, GPT-2's `logits_to_keep` too, would sort them on
            # CUDA.
            hidden = hidden.index_select(1, self.positions)  # 1 P E
        if self.keeps_hidden:
            self.hidden = hidden
        return None if self.positions is None else (hidden, *rest)


class SetPositions:
    """Gives a position table that takes none from its model the positions of a packed row.

    A forward pre-hook, with keywords, of BART's `embed_positions`, which the model calls for a row of one text.
    """

    def __init__(self) -> None:
        self.positions: Tensor | None = None

    def __call__(
        self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return None if self.positions is None else (arguments, {**keywords, "position_ids": self.positions})


class SelectPairs:
    """Has the stock pooler read the first token of every pair, not only that of the row.

    A forward pre-hook of the pooler and, where that is given the first token and nothing else, a forward hook of the
    module that made it. An object, as :class:`SelectRows`.
    """

    def __init__(self) -> None:
        self.indices: Tensor | None = None
        self._hidden: Tensor | None = None

    def keep(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        """Remember the hidden states that the first tokens are taken from, (1, T, E)."""
        if self.indices is not None:
            self._hidden = output[0]

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.indices is None:
            return None
        hidden, self._hidden = (arguments[0] if self._hidden is None else self._hidden), None
        chosen = hidden.index_select(1, self.indices)  # 1 K E
        return (chosen.transpose(0, 1) if arguments[0].dim() == 3 else chosen.squeeze(0),)  # K 1 E or K E


def prepare_packed(model: nn.Module, narrow: bool = False) -> None:
    """Install what the functions below need on ``model``, once; called without them, the model stays as it was.

    Args:
        narrow: compute the last block at the predicted positions only, where the family can: see :mod:`.last_block`.
    """
    if hasattr(model, SELECT_NAME):
        return
    narrow = narrow and family_of(model).narrow_last_block
    if narrow:
        narrow_last_block(transformer_blocks(model)[-1])
    setattr(model, NARROW_NAME, narrow)
    decoder = cast("Any", model).get_output_embeddings()
    select = SelectRows()
    setattr(model, SELECT_NAME, select)
    if decoder is None:  # a discriminator, which judges every token
        return
    model.get_submodule(family_of(model).head_entry).register_forward_pre_hook(select)
    tables = {}
    for path in family_of(model).position_hooks:
        tables[path] = SetPositions()
        model.get_submodule(path).register_forward_pre_hook(tables[path], with_kwargs=True)
    setattr(model, TABLES_NAME, tables)
    if has_pair_head(model):
        pair_head = family_of(model).pair_head
        assert pair_head is not None
        pairs = SelectPairs()
        model.get_submodule(pair_head.pooler).register_forward_pre_hook(pairs)
        if pair_head.hidden_of is not None:
            model.get_submodule(pair_head.hidden_of).register_forward_hook(pairs.keep)
        setattr(model, PAIRS_NAME, pairs)
    install_head_loss(model, decoder, in_head=not family_of(model).logits_after_head)


@contextmanager
def with_labels(model: nn.Module, labels: Tensor) -> Iterator[None]:
    """Inside, the head returns the sum of the losses of these labels, int64 (P,), where it can (see ``Family``)."""
    loss = head_loss_of(model)
    loss.labels = labels
    try:
        yield
    finally:
        loss.labels = None


@contextmanager
def selected_rows(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Inside, the head is given the rows of these flattened positions only, int64 (P,)."""
    select: SelectRows = getattr(model, SELECT_NAME)
    select.positions = positions
    try:
        yield
    finally:
        select.positions = None


def loss_of_logits(model: nn.Module, output: Tensor, labels: Tensor) -> Tensor:
    """The sum of the losses, a scalar in fp32 at least, from what the model called its logits inside
    :func:`with_labels`: the sum, BART's with a constant row of zeros added, or whole logits (P, V)."""
    if not family_of(model).logits_after_head:
        return output.flatten()[0]
    loss = head_loss_of(model)
    if loss.counts_hits:
        counted = labels != IGNORED
        loss.hits = torch.stack([((output.argmax(-1) == labels) & counted).sum(), counted.sum()])
    exact = torch.promote_types(output.dtype, torch.float32)
    return cross_entropy(output.to(exact), labels, ignore_index=IGNORED, reduction="sum")


def has_pair_head(model: nn.Module) -> bool:
    """Whether a stock model is of its family's class for sentence pairs."""
    pair_head = family_of(model).pair_head
    return pair_head is not None and type(model).__name__ == pair_head.model_class


def set_family(model: nn.Module, family: Family) -> None:
    """Say what the table does not: the entry of a model of family ``auto``."""
    setattr(model, FAMILY_NAME, family)


def family_of(model: nn.Module) -> Family:
    """The table entry of a model: the one that was set, else by its config's ``model_type``."""
    own: Family | None = getattr(model, FAMILY_NAME, None)
    return FAMILIES[config_of(model).model_type] if own is None else own


def config_of(model: nn.Module) -> Any:
    return cast("Any", model).config
