"""What a peer is, and the masking that all of them use.

Letters: B rows of a batch, S sequence length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

BATCH_ROWS: Final = 64
SEQUENCE_LENGTH: Final = 512
MASK_RATE: Final = 0.15
SHUFFLE_BUFFER: Final = 1000
SPECIAL_IDS: Final = (0, 100, 101, 102, 103)
"""Of bert-base-uncased: pad, unk, cls, sep, mask."""

Collate = Callable[[Sequence[Any]], dict[str, Any]]


class Peer(ABC):
    """A loader of packed rows.

    Args:
        rows_path: uint16 rows (R, S) in an npy file.
        directory: for the peer's own files; what is there already is used.
    """

    name: ClassVar[str]
    lacks: ClassVar[str]
    """What it does not do that ours does, for the reader of the table."""

    def __init__(self, rows_path: Path, directory: Path) -> None:
        self.rows_path = rows_path
        self.directory = directory
        done = directory / "done"
        if not done.is_file() or done.stat().st_mtime < rows_path.stat().st_mtime:
            directory.mkdir(parents=True, exist_ok=True)
            self.write(np.load(rows_path, mmap_mode="r"))
            done.touch()

    @abstractmethod
    def write(self, rows: np.ndarray) -> None:
        """Turn the rows, uint16 (R, S), into the peer's format."""

    @abstractmethod
    def batches(self, collate: Collate) -> Iterator[Any]:
        """One epoch of batches in the peer's shuffled order; ``collate`` gets a list of 64 rows."""


class ResumablePeer(Peer):
    """A peer that can go on in the middle of an epoch."""

    @abstractmethod
    def state_after(self, num_batches: int) -> Any:
        """What a checkpoint must hold after so many batches; may have to read them."""

    @abstractmethod
    def resume(self, state: Any, collate: Collate) -> Iterator[Any]:
        """The batches from there on."""


def as_int64(row: Any) -> Any:
    """A row of whatever integer type as an int64 tensor, (S,)."""
    import torch

    return row.long() if isinstance(row, torch.Tensor) else torch.from_numpy(np.asarray(row).astype(np.int64))


def raw_batch(rows: Sequence[Any]) -> dict[str, Any]:
    """No masking: int64 (B, S)."""
    import torch

    if isinstance(rows[0], torch.Tensor):
        return {"input_ids": torch.stack(list(rows)).long()}
    return {"input_ids": torch.from_numpy(np.stack(rows).astype(np.int64))}


def make_collator(tokenizer_file: Path | None, vocab_size: int) -> Any:
    """`DataCollatorForLanguageModeling` with the settings that ours has: 15 %, 80/10/10."""
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    if tokenizer_file is not None:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), **names)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=_made_up_tokenizer(vocab_size), **names)
    return DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=MASK_RATE)


def _made_up_tokenizer(vocab_size: int) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"word{number}": number for number in range(vocab_size) if number not in SPECIAL_IDS}
    special = zip(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), SPECIAL_IDS, strict=True)
    return Tokenizer(WordLevel({**words, **dict(special)}, unk_token="[UNK]"))


def documented_collate(collator: Any) -> Collate:
    """The collator called as users call it, with a list of tensors: the fastest of the forms it takes."""

    def collate(rows: Sequence[Any]) -> dict[str, Any]:
        return collator([as_int64(row) for row in rows])

    return collate


def tuned_collate(collator: Any) -> Collate:
    """Around the collator's public call: rows stacked first, special tokens found by a table, its NumPy masking."""
    is_special = np.zeros(1 << 16, np.bool_)
    is_special[list(SPECIAL_IDS)] = True

    def collate(rows: Sequence[Any]) -> dict[str, Any]:
        import torch

        stacked = np.stack([np.asarray(row) for row in rows]).astype(np.int64)  # B S
        inputs, labels = collator.numpy_mask_tokens(stacked, special_tokens_mask=is_special[stacked])
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}

    return collate
