"""The tokenizer of a synthetic corpus: a word an id, words parted by white space; transformers alone loads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a family, numbered as in its published tokenizers."""

    first: tuple[str, ...]
    """Those before the words."""

    last: tuple[str, ...]
    """Those behind the words."""

    parts: dict[str, str]
    """Which plays what part: ``{"cls_token": "[CLS]", ...}``."""

    single: str | None
    """How one text is framed, as a template of tokenizers; None: not at all."""

    pair: str | None
    """How two texts are framed; ``:1`` marks the second segment."""


SPECIAL_TOKENS: Final = {
    "bert": SpecialTokens(
        first=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        last=(),
        parts={f"{part}_token": f"[{part.upper()}]" for part in ("pad", "unk", "cls", "sep", "mask")},
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    ),
    "roberta": SpecialTokens(
        first=("<s>", "<pad>", "</s>", "<unk>"),
        last=("<mask>",),
        parts={
            "bos_token": "<s>",
            "cls_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
        },
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
    ),
    "gpt2": SpecialTokens(
        first=(),
        last=("<|endoftext|>",),
        parts={f"{part}_token": "<|endoftext|>" for part in ("bos", "eos", "unk")},
        single=None,
        pair=None,
    ),
}


def word_tokenizer(words: Sequence[str], style: str) -> Any:
    """A stock fast tokenizer: ids of the special tokens that come first, then one a word, then the other special ones.

    Args:
        words: different ones without white space.
        style: ``"bert"``, ``"roberta"`` or ``"gpt2"``: special tokens, and how texts are framed.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = SPECIAL_TOKENS[style]
    vocabulary = {token: number for number, token in enumerate([*special.first, *words, *special.last])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special.parts["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special.single is not None:
        framing = sorted({special.parts["cls_token"], special.parts["sep_token"]})
        backend.post_processor = processors.TemplateProcessing(
            single=special.single, pair=special.pair, special_tokens=[(token, vocabulary[token]) for token in framing]
        )
    segments = ["token_type_ids"] if style == "bert" else []
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", *segments, "attention_mask"],
        clean_up_tokenization_spaces=False,
        **special.parts,
    )


def first_word_id(style: str) -> int:
    """The id of word 0: the words follow the special tokens that come first."""
    return len(SPECIAL_TOKENS[style].first)
