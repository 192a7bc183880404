"""A look at an exported model from outside: fill masks in a process that has only transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.export.fresh_process import FreshProcessError, run_fresh


def fill_mask(export_directory: Path, sentences: Sequence[str], top_k: int = 5) -> list[dict[str, Any]]:
    """The most probable tokens for the one mask of each sentence.

    Args:
        sentences: each with one mask token; ``[MASK]`` is taken for whatever the tokenizer's mask token is.

    Returns:
        ``[{"sentence": ..., "predictions": [{"token": ..., "probability": ...}, ...]}, ...]``, most probable first.

    Raises:
        UserError: no exported masked language model there, or a sentence without exactly one mask.
    """
    if not (export_directory / "config.json").is_file():
        raise UserError(
            f"fill mask: {export_directory} holds no exported model (no config.json). Write one with `pretrain export`."
        )
    request = {"directory": str(export_directory.resolve()), "sentences": list(sentences), "top_k": top_k}
    try:
        return run_fresh("fresh_fill_mask.py", request)
    except FreshProcessError as error:
        raise UserError(
            f"fill mask: {export_directory}: {error}. Give a masked language model and sentences with one mask each."
        ) from None
