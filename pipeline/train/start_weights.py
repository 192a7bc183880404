"""`start`: the first weights of a run, read from a folder or another run, checked against the tokenizer of the corpus.

Letters: V rows of this model's vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.keyed import hashes, key
from pipeline.base.logs import get_logger
from pipeline.checkpoints.meta import checkpoint_directory, list_checkpoints
from pipeline.checkpoints.reading import read_weights
from pipeline.checkpoints.verifying import newest_intact
from pipeline.config.derived import corpora_of, head_of
from pipeline.config.loading import load_run_config
from pipeline.config.run import RunConfig
from pipeline.data.corpora import files_at
from pipeline.models.build import hf_config
from pipeline.models.hooks import family_of
from pipeline.models.starting_points import MEAN, Source, fit_weights, read_pretrained
from pipeline.shards.manifest import read_manifest
from pipeline.train.streams import Streams

RANDOM: Final = "random"
_REMAP_STREAM: Final = 0x2E3A  # keeps the key of a random mapping apart from the others
_MOST_TOKENS: Final = 5

Vocabulary = Mapping[str, int]
"""Token -> id."""


def load_start(model: Any, config: RunConfig, streams: Streams) -> None:
    """Give a new model the weights that `start` names; without one nothing happens.

    Raises:
        UserError: they cannot be read, or their shapes, their function or their tokenizer do not fit.
    """
    start = config.start
    if start.from_pretrained is None and start.from_run is None:
        return
    if start.from_pretrained is not None:
        folder = Path(start.from_pretrained)
        source, theirs = read_pretrained(folder), read_vocabulary(folder)
    else:
        source, theirs = _read_run(Path(str(start.from_run)), start.step)
    ours = read_vocabulary(streams.sources[0].files.tokenizer_directory())
    rows = _rows_of(source, theirs, ours, config, streams.vocab_size)
    before = 0
    if family_of(model).positions_follow_padding:
        before = (streams.manifest.special_ids.get("pad") or 0) + 1
    fitted = fit_weights(source, model, start, rows, positions_before=before)
    model.load_state_dict(fitted.weights, strict=False)
    model.tie_weights()
    get_logger().info(
        "start: %d tensors of %s; %d keep their random weights%s; %d of its tensors are not used", len(fitted.weights),
        source.location, len(fitted.fresh), f" ({', '.join(fitted.fresh[:4])} ...)" if fitted.fresh else "",
        len(fitted.unused),
    )  # fmt: skip


def _read_run(directory: Path, step: int | None) -> tuple[Source, Vocabulary | None]:
    """The weights of a run of this project and the vocabulary of its corpus.

    Raises:
        UserError: no run, no such checkpoint, none intact, or the corpus is not where the run had it.
    """
    where = f"start.from_run: {directory}"
    if not (directory / "config.yaml").is_file():
        raise UserError(f"{where} holds no run (no config.yaml); name the run_directory of a training run.")
    if step is None:
        step, damage = newest_intact(directory)
        if step is None:
            why = f"its checkpoints are damaged ({'; '.join(map(str, damage))})" if damage else "it has no checkpoint"
            raise UserError(f"{where}: {why}.")
    elif step not in (found := list_checkpoints(directory)):
        raise UserError(f"start.step: {directory} has no checkpoint of step {step}; there are {found}.")
    theirs = load_run_config(directory / "config.yaml")
    corpus = corpora_of(theirs)[0].corpus
    try:
        files = files_at(corpus, theirs.data.cache)
        manifest = read_manifest(files)
        vocabulary = read_vocabulary(files.tokenizer_directory())
    except UserError as error:
        raise UserError(
            f"{where}: its corpus, by whose tokenizer its ids are known, cannot be read ({error}). Put it back, or "
            "export the run and set start.from_pretrained."
        ) from None
    hf = hf_config(
        theirs.model,
        vocab_size=manifest.vocab_size,
        special_ids=manifest.special_ids,
        head=head_of(theirs),
    )
    checkpoint = checkpoint_directory(directory, step)
    return Source(checkpoint, read_weights(checkpoint), hf.to_dict()), vocabulary


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Token -> id of the tokenizer in a folder: `tokenizer.json`, else `vocab.txt` (a line a token), `vocab.json`.

    None: there is no tokenizer.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if (path := folder / "tokenizer.json").is_file():
            whole = json.loads(path.read_text(encoding="utf-8"))
            listed = whole["model"]["vocab"]
            tokens = listed if isinstance(listed, dict) else {entry[0]: place for place, entry in enumerate(listed)}
            return {**tokens, **{token["content"]: token["id"] for token in whole.get("added_tokens", ())}}
        if (path := folder / "vocab.txt").is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            return {token: place for place, token in enumerate(lines)}
        if (path := folder / "vocab.json").is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"tokenizer of {folder}: {path.name} cannot be read ({error}).") from None
    return None


def _rows_of(
    source: Source, theirs: Vocabulary | None, ours: Vocabulary | None, config: RunConfig, vocab_size: int
) -> Tensor | None:
    """Row of the source's vocabulary for every id of this run, int64 (V,); None: as they are.

    Raises:
        UserError: the ids mean something else there.
    """
    if config.model.remap_vocabulary is not None:
        num_rows = max(theirs.values()) + 1 if theirs else int(source.config.get("vocab_size", 0))
        if config.model.remap_vocabulary == RANDOM:
            return torch.from_numpy(random_rows(vocab_size, num_rows, theirs or {}, ours or {}, config.seed))
        return _given_rows(Path(config.model.remap_vocabulary), vocab_size, num_rows)
    if theirs is None or ours is None:
        get_logger().warning(
            "start: %s has no tokenizer to compare with that of the corpus; its ids are taken as they are",
            source.location if theirs is None else "the corpus",
        )
        return None
    differing = any(ours.get(token) != number for token, number in theirs.items())
    if config.start.extend_vocabulary and not differing:
        first_new = max(theirs.values()) + 1
        return torch.cat([torch.arange(first_new), torch.full((vocab_size - first_new,), MEAN)])
    difference = tokenizer_difference(theirs, ours)
    if difference is None:
        return None
    raise UserError(
        f"start: the tokenizer of {source.location} is not that of the corpus: {difference}. Build the corpus with "
        + f"that tokenizer (tokenizer.path), {'' if differing else 'set start.extend_vocabulary, '}"
        + "or say by model.remap_vocabulary which id takes which row."
    )


def tokenizer_difference(theirs: Vocabulary, ours: Vocabulary) -> str | None:
    """What distinguishes two tokenizers by their ids; None: nothing."""
    differing = [token for token, number in theirs.items() if ours.get(token) != number]
    added = [token for token, number in ours.items() if theirs.get(token) != number]
    if not differing and not added:
        return None
    shown = ", ".join(
        f"{token!r} is {theirs.get(token, 'no token')} there, {ours.get(token, 'no token')} here"
        for token in (differing or added)[:_MOST_TOKENS]
    )
    count = len({*differing, *added})
    return f"{len(theirs):,} tokens there, {len(ours):,} here, of which {count:,} differ; {shown}"


def random_rows(
    vocab_size: int, num_rows: int, theirs: Vocabulary, ours: Vocabulary, seed: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A row of the source for every id, in an order that the seed draws: each once, and all again where there are too
    few. A token that both tokenizers have in brackets (a special one) keeps its row. int64 (V,)."""
    kept = {ours[token]: number for token, number in theirs.items() if token in ours and _is_special(token)}
    free = np.setdiff1d(np.arange(num_rows), list(kept.values()))
    rows = np.empty(vocab_size, np.int64)
    ids = np.setdiff1d(np.arange(vocab_size), list(kept))
    drawn = np.argsort(hashes(key(seed, _REMAP_STREAM), np.arange(len(free))), kind="stable")
    rows[ids] = free[drawn][np.arange(len(ids)) % len(free)]
    for number, row in kept.items():
        rows[number] = row
    return rows


def _is_special(token: str) -> bool:
    return (token.startswith("[") and token.endswith("]") and len(token) > 2) or (
        token.startswith("<") and token.endswith(">") and len(token) > 2
    )


def _given_rows(path: Path, vocab_size: int, num_rows: int) -> Tensor:
    """A JSON list with the source's row for every id; -1: the mean of all rows.

    Raises:
        UserError: it cannot be read, has another length, or names a row that is not there.
    """
    where = f"model.remap_vocabulary: {path}"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{where} cannot be read ({error}). It is `random`, or a JSON list of rows.") from None
    if not isinstance(rows, list) or not all(type(row) is int for row in rows):
        raise UserError(f"{where} is no JSON list of whole numbers: the source's row for every id, -1 for their mean.")
    if len(rows) != vocab_size:
        raise UserError(f"{where} has {len(rows)} rows; the model has {vocab_size} ids.")
    if rows and not -1 <= min(rows) <= max(rows) < num_rows:
        raise UserError(f"{where} names rows {min(rows)} to {max(rows)}; the source has 0 to {num_rows - 1} (or -1).")
    return torch.tensor(rows, dtype=torch.int64)
