"""Formats of rows from a corpus's special tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.data.row_format import row_format
from pipeline.shards.manifest import Manifest
from tests.corpora import write_corpus


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_corpus(tmp_path / "corpus", [[5]]).manifest


def without(manifest: Manifest, name: str) -> Manifest:
    return replace(manifest, special_ids={**manifest.special_ids, name: None})


def test_kinds(manifest: Manifest) -> None:
    bert, gpt = row_format(manifest, "bert", 128), row_format(manifest, "gpt", 64)
    assert (bert.begin_ids, bert.end_ids, bert.pad_id, bert.overhead) == ((2,), (3,), 0, 2)
    assert not bert.end_only_at_document_end
    assert (gpt.begin_ids, gpt.end_ids, gpt.pad_id, gpt.overhead) == ((), (5,), 0, 1)
    assert gpt.end_only_at_document_end
    assert (bert.sequence_length, gpt.sequence_length) == (128, 64)


def test_gpt_pads_with_end_of_text_where_there_is_no_padding_token(manifest: Manifest) -> None:
    assert row_format(without(manifest, "pad"), "gpt", 64).pad_id == 5


@pytest.mark.parametrize(("kind", "name"), [("bert", "cls"), ("bert", "sep"), ("bert", "pad"), ("gpt", "eos")])
def test_missing_special_tokens_are_named(manifest: Manifest, kind, name: str) -> None:
    with pytest.raises(UserError, match=rf"has no {name} token, which rows of the {kind} kind need \(it has: .*unk=1"):
        row_format(without(manifest, name), kind, 64)


def test_sequences_out_of_range_are_refused(manifest: Manifest) -> None:
    assert row_format(manifest, "bert", 8).sequence_length == 8
    with pytest.raises(UserError, match=r"data\.sequence_length is 7; it must be 8 to 65535"):
        row_format(manifest, "bert", 7)
    assert row_format(manifest, "bert", 65_535).sequence_length == 65_535
    with pytest.raises(UserError, match=r"data\.sequence_length is 65536; it must be 8 to 65535"):
        row_format(manifest, "bert", 65_536)  # offsets in a row have 16 bits
