"""How many positions a class of family `auto` has, found out on its trial model."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pipeline.base.errors import UserError
from pipeline.config.hugging_face import AUTO
from pipeline.config.model import ModelConfig
from pipeline.config.objective import Head
from pipeline.models.auto import one_line
from pipeline.models.trial import ROWS, SPECIAL_IDS, small_model

_LENGTH: Final = 12
_TEXT_ID: Final = 7


class _Lookups(TorchFunctionMode):
    """Notes the ids and the rows of every look-up in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, int]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.embedding:
            self.seen.append((args[0].detach().flatten(), len(args[1])))
        return func(*args, **(kwargs or {}))


def table_positions(config: ModelConfig, head: Head, pad_id: int) -> tuple[int, int] | None:
    """Positions that a class can count in its tables, and the first row that it reads, which may follow ``pad_id``.

    A table of positions is one in which a text of n tokens looks up n rows that follow one another. None: it has none.

    Raises:
        UserError: see :func:`pipeline.models.auto.auto_config`; or its forward fails on a short text.
    """
    return _table_positions(json.dumps(config.config, sort_keys=True), head, pad_id)


@lru_cache(maxsize=16)
def _table_positions(keys: str, head: Head, pad_id: int) -> tuple[int, int] | None:
    config = ModelConfig(family=AUTO, config=json.loads(keys))
    special_ids = {**SPECIAL_IDS, "pad": pad_id}
    text_id = _TEXT_ID + (pad_id == _TEXT_ID)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
        model = small_model(config, head, max(pad_id + 1, ROWS), special_ids)
        text = torch.full((1, _LENGTH), text_id)
        inputs = {"input_ids": text, **({"decoder_input_ids": text} if head == "seq2seq" else {})}
        try:
            with _Lookups() as lookups:
                model(**inputs)
        except Exception as error:
            what = f"model.config: {type(model).__name__}"
            raise UserError(f"{what} does not run on a row of plain text ({one_line(error)}).") from None
    found = [
        (rows - int(ids[0]), int(ids[0]))
        for ids, rows in lookups.seen
        if len(ids) == _LENGTH and torch.equal(ids, torch.arange(_LENGTH) + ids[0])
    ]
    return min(found, default=None)
