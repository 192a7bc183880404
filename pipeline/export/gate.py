"""The gate of an export: the same logits from the trained model, packed, and from the folder, in a stranger's process.

Letters: T tokens of all segments, V vocabulary, K segments, S sequence length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.config.derived import is_causal
from pipeline.config.run import RunConfig
from pipeline.config.stages import stages_of
from pipeline.data.stream import open_stream
from pipeline.export.fresh_process import FreshProcessError, run_fresh
from pipeline.models.hooks import family_of, has_pair_head
from pipeline.models.packed import packed_logits, packed_outputs, packed_pair_logits, packed_seq2seq_logits
from pipeline.models.padded import padded_logits, padded_seq2seq_logits
from pipeline.shards.files import CorpusFiles
from pipeline.shards.manifest import Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_ABS_LOGIT_DIFFERENCE = 1e-5
_LARGEST_ROUNDING = 1e-2
"""No rounding of float32 logits explains more than this."""
_NUM_ROWS = 2
_MASK_EVERY = 7


@dataclass(frozen=True)
class GateResult:
    """What the comparison found."""

    max_abs_logit_difference: float
    dtype: str
    """``float32``; ``float64`` where rounding alone exceeded the limit in float32 (wide or deep models)."""

    num_tokens: int
    class_name: str
    num_parameters: int
    mask_token: str | None


def gate_segments(files: CorpusFiles, manifest: Manifest, config: RunConfig, step: int) -> list[NDArray[np.int64]]:
    """Segments of two real rows of the run's own stream, for masked models with some tokens masked; each int64, 1-D.

    Args:
        step: of the checkpoint; its stages say how long the rows may be.
    """
    causal = is_causal(config)
    stream = open_stream(
        files,
        kind="gpt" if causal else "bert",
        sequence_length=stages_of(config).longest_row(step),
        global_batch_size=_NUM_ROWS,
        packing=config.data.packing,
        open_shards=config.data.open_shards,
        seed=config.seed,
    )
    rows = stream.rows(0)
    tokens = rows.tokens.astype(np.int64)  # R S
    mask_id = manifest.special_ids.get("mask")
    if mask_id is not None and not causal:
        flat = tokens.reshape(-1)
        special = np.isin(flat, list(manifest.all_special_ids))
        flat[np.flatnonzero(~special)[::_MASK_EVERY]] = mask_id
    return [
        tokens[row, start : start + length]
        for row, start, length in zip(rows.segment_row, rows.segment_start, rows.segment_length, strict=True)
    ]


def trained_logits(model: PreTrainedModel, segments: Sequence[NDArray[np.int64]]) -> list[NDArray[np.floating]]:
    """Logits of the training model over all segments packed into one row, (T, V), in the model's dtype; where it has a
    head for sentence pairs also its logits, (K, 2), the second half of every segment being the second part; of a
    discriminator (T,)."""
    lengths = [len(segment) for segment in segments]
    input_ids = torch.from_numpy(np.concatenate(segments))[None]  # 1 T
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]  # 1 T
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)  # K+1
    everywhere = torch.arange(sum(lengths))
    with torch.no_grad():
        if family_of(model).padded is not None:
            return [torch.cat([_padded_text(model, torch.from_numpy(own)) for own in segments]).numpy()]
        if family_of(model).has_decoder:
            decoder_ids = torch.cat([shifted(torch.from_numpy(own), model.config.eos_token_id) for own in segments])
            row = (position_ids[0], cu_seqlens)
            logits = packed_seq2seq_logits(model, input_ids, *row, decoder_ids[None], *row, max(lengths), everywhere)
            return [logits.numpy()]
        if model.get_output_embeddings() is None:  # a discriminator, which has one logit for every token
            outputs = packed_outputs(model, input_ids, position_ids, cu_seqlens, max(lengths))
            return [outputs.logits.squeeze(0).numpy()]
        if not has_pair_head(model):
            logits = packed_logits(model, input_ids, position_ids, cu_seqlens, max(lengths), everywhere)
            return [logits.numpy()]
        types = torch.cat([second_half(length) for length in lengths])[None]  # 1 T
        both = packed_pair_logits(
            model, input_ids, position_ids, types, cu_seqlens, max(lengths), everywhere, cu_seqlens[:-1].long()
        )
        return [logits.numpy() for logits in both]


def _padded_text(model: PreTrainedModel, text: Tensor) -> Tensor:
    """Logits (n, V) of one text of n tokens from a model that runs padded, as a row of its own."""
    ids, is_real, everywhere = text[None], torch.ones(1, len(text), dtype=torch.bool), torch.arange(len(text))
    if family_of(model).has_decoder:
        decoder_ids = shifted(text, model.config.eos_token_id)[None]
        return padded_seq2seq_logits(model, ids, is_real, decoder_ids, is_real, everywhere)
    return padded_logits(model, ids, is_real, everywhere)


def shifted(segment: Tensor, start_id: int) -> Tensor:
    """What a decoder reads that is to write ``segment``."""
    return torch.cat([torch.tensor([start_id]), segment[:-1]])


def second_half(length: int) -> Tensor:
    """Token types of a segment: 1 from its middle on."""
    return (torch.arange(length) >= length // 2).long()


def compare(
    model: PreTrainedModel, directory: Path, segments: Sequence[NDArray[np.int64]], manifest: Manifest
) -> GateResult:
    """Compare the trained model (float32, on the CPU, in evaluation mode) with the exported ``directory``.

    The limit holds for float32. Where it is exceeded by as little as rounding can do, both sides compute again in
    float64: what rounding did vanishes there, what an export did wrong stays.

    Raises:
        UserError: the folder does not load, the tokenizer's ids are not the corpus's, or the logits differ.
    """
    found = _compare_once(model, directory, segments, manifest, "float32")
    if MAX_ABS_LOGIT_DIFFERENCE < found.max_abs_logit_difference <= _LARGEST_ROUNDING:
        found = _compare_once(model.double(), directory, segments, manifest, "float64")
    if not found.max_abs_logit_difference <= MAX_ABS_LOGIT_DIFFERENCE:  # also when it is NaN
        raise UserError(
            "export refused: the exported model differs from the trained one: largest absolute difference of logits "
            f"{found.max_abs_logit_difference:.3g} over {found.num_tokens} tokens in {found.dtype}, allowed "
            f"{MAX_ABS_LOGIT_DIFFERENCE:g}. Nothing was published. If the run's config.yaml is as it was trained with, "
            "this is a bug: please report it."
        )
    return found


def _compare_once(
    model: PreTrainedModel, directory: Path, segments: Sequence[NDArray[np.int64]], manifest: Manifest, dtype: str
) -> GateResult:
    ours = trained_logits(model, segments)  # T V
    with tempfile.TemporaryDirectory(prefix="pretrain-gate-") as folder:
        ids_path, logits_paths = Path(folder, "input_ids.npy"), [Path(folder, f"{n}.npy") for n in range(len(ours))]
        np.save(ids_path, np.concatenate(segments))
        pair_head = family_of(model).pair_head if has_pair_head(model) else None
        request = {
            "directory": str(directory.resolve()),
            "auto_class": "AutoModelForPreTraining" if pair_head else auto_class(model),
            "outputs": ["logits"] if pair_head is None else ["prediction_logits", pair_head.logits],
            "dtype": dtype,
            "input_ids": str(ids_path),
            "lengths": [len(segment) for segment in segments],
            "decoder_start": model.config.eos_token_id if family_of(model).has_decoder else None,
            "logits": [str(path) for path in logits_paths],
            "special_ids": [int(index) for index in manifest.all_special_ids],
        }
        try:
            response = run_fresh("fresh_logits.py", request)
        except FreshProcessError as error:
            raise UserError(
                f"export refused: the exported folder does not load in a process without this project: {error}. "
                "Nothing was published."
            ) from None
        theirs = [np.load(path) for path in logits_paths]
    check_token_ids(response, manifest)
    differences = [
        float(np.abs(own - other).max()) if own.shape == other.shape else float("inf")
        for own, other in zip(ours, theirs, strict=True)
    ]
    return GateResult(
        max_abs_logit_difference=float(np.max(differences)),  # NaN where one is
        dtype=dtype,
        num_tokens=len(ours[0]),
        class_name=response["class_name"],
        num_parameters=response["num_parameters"],
        mask_token=response["mask_token"],
    )


def auto_class(model: PreTrainedModel) -> str:
    """The transformers class that a user loads such a model with; it leaves a head for sentence pairs out."""
    if model.get_output_embeddings() is None:
        return "AutoModelForPreTraining"
    if family_of(model).has_decoder:
        return "AutoModelForSeq2SeqLM"
    return "AutoModelForCausalLM" if family_of(model).causal else "AutoModelForMaskedLM"


def check_token_ids(response: dict[str, Any], manifest: Manifest) -> None:
    """Refuse a tokenizer that, loaded by a stranger, gives other ids than the corpus was written with.

    Raises:
        UserError: its size or a special id differs, or a special token is not encoded as its id.
    """
    problems = []
    if response["vocab_size"] != manifest.vocab_size:
        problems.append(f"it has {response['vocab_size']} ids, the corpus {manifest.vocab_size}")
    for name, index in manifest.special_ids.items():
        found = response["token_ids"].get(name)
        if index is not None and found != index:
            problems.append(f"its {name} token has id {found}, in the corpus {index}")
    for index, encoded in response["round_trips"].items():
        if encoded != [int(index)]:
            problems.append(f"the special token of id {index} is encoded as {encoded}")
    if problems:
        raise UserError(
            f"export refused: the tokenizer loads with other ids than the corpus was built with: {'; '.join(problems)}."
            " Nothing was published. Restore the corpus's tokenizer/ folder, or rebuild the corpus."
        )
