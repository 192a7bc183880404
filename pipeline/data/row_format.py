"""How pieces of documents stand in a row, for a corpus and a kind of model.

Letters: S sequence length.
"""

from __future__ import annotations

from typing import Literal

from pipeline.base.errors import UserError
from pipeline.config.data_checks import MAX_SEQUENCE_LENGTH, MIN_SEQUENCE_LENGTH
from pipeline.config.row_checks import most_context_tokens
from pipeline.data.rows import RowFormat
from pipeline.shards.manifest import Manifest

RowKind = Literal["bert", "gpt"]


def row_format(
    manifest: Manifest, kind: RowKind, sequence_length: int, pairs: bool = False, context_tokens: int = 0
) -> RowFormat:
    """The rows of a corpus: ``[CLS] piece [SEP]`` for the BERT kind, ``piece <eos>`` for the GPT kind.

    Pairs, of the BERT kind only, are ``[CLS] first [SEP] second [SEP]``.

    A tokenizer without a padding token pads with its end-of-text token; padded slots are in no segment and no loss.

    Raises:
        UserError: ``sequence_length`` is out of range, the tokenizer lacks cls, sep, pad (BERT) or eos (GPT), or pairs
            of the GPT kind, or a context of the BERT kind or as long as a row.
    """
    if not MIN_SEQUENCE_LENGTH <= sequence_length <= MAX_SEQUENCE_LENGTH:
        raise UserError(
            f"data.sequence_length is {sequence_length}; it must be {MIN_SEQUENCE_LENGTH} to {MAX_SEQUENCE_LENGTH}."
        )
    if context_tokens and kind == "bert":
        raise UserError(
            f"data.context_tokens is {context_tokens}: rows of the BERT kind have no context; set it to 0, or train a "
            "causal model (objective.name: clm)."
        )
    if not 0 <= context_tokens <= most_context_tokens(sequence_length):
        raise UserError(
            f"data.context_tokens is {context_tokens}; with data.sequence_length {sequence_length} it must be 0 to "
            f"{most_context_tokens(sequence_length)}."
        )
    if kind == "gpt" and pairs:
        raise UserError("data.packing: pairs of sentences are rows of the BERT kind; choose another packing for clm.")
    if kind == "gpt":
        end = _special_id(manifest, "eos", kind)
        pad = manifest.special_ids.get("pad")
        return RowFormat(
            sequence_length,
            (),
            (end,),
            end if pad is None else pad,
            end_only_at_document_end=True,
            context_tokens=context_tokens,
        )
    return RowFormat(
        sequence_length=sequence_length,
        begin_ids=(_special_id(manifest, "cls", kind),),
        end_ids=(_special_id(manifest, "sep", kind),),
        pad_id=_special_id(manifest, "pad", kind),
        end_only_at_document_end=False,
        middle_ids=(_special_id(manifest, "sep", kind),) if pairs else (),
    )


def _special_id(manifest: Manifest, name: str, kind: RowKind) -> int:
    found = manifest.special_ids.get(name)
    if found is None:
        present = ", ".join(f"{other}={value}" for other, value in manifest.special_ids.items() if value is not None)
        raise UserError(
            f"The corpus's tokenizer has no {name} token, which rows of the {kind} kind need "
            f"(it has: {present or 'none'}). "
            "Build the corpus with a tokenizer of that family, or train a model of another family."
        )
    return int(found)
