"""Parts of the gate: real segments, packed logits, ids of the tokenizer, and a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.export import fresh_process
from pipeline.export.fresh_process import FreshProcessError, run_fresh
from pipeline.export.gate import check_token_ids, gate_segments
from pipeline.shards.files import LocalFiles
from tests.unit.export.export_cases import make_corpus, run_config


def test_segments_are_rows_of_the_run_with_some_masks(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "corpus", "bert")
    segments = gate_segments(
        LocalFiles(tmp_path / "corpus"), manifest, run_config(tmp_path / "run", tmp_path / "corpus", "bert"), 1
    )
    assert len(segments) >= 2
    for segment in segments:
        assert (segment[0], segment[-1]) == (manifest.special_ids["cls"], manifest.special_ids["sep"])
        assert 3 <= len(segment) <= 32
    assert (np.concatenate(segments) == manifest.special_ids["mask"]).any()
    assert (np.concatenate(segments) != manifest.special_ids["pad"]).all()


def test_causal_segments_have_no_masks(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "corpus", "gpt2")
    segments = gate_segments(
        LocalFiles(tmp_path / "corpus"), manifest, run_config(tmp_path / "run", tmp_path / "corpus", "gpt2"), 1
    )
    assert {int(token) for segment in segments for token in segment[:-1]}.isdisjoint(manifest.all_special_ids)


def test_other_token_ids_are_named(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "corpus", "bert")
    good = {
        "vocab_size": manifest.vocab_size,
        "token_ids": dict(manifest.special_ids),
        "round_trips": {str(index): [index] for index in manifest.all_special_ids},
    }
    check_token_ids(good, manifest)
    bad = {
        "vocab_size": 61,
        "token_ids": {**manifest.special_ids, "mask": None, "sep": 9},
        "round_trips": {**good["round_trips"], "2": [1, 1], "3": None},
    }
    with pytest.raises(UserError, match="export refused: the tokenizer loads with other ids") as caught:
        check_token_ids(bad, manifest)
    for problem in (
        "it has 61 ids, the corpus 60",
        "its mask token has id None, in the corpus 4",
        "its sep token has id 9, in the corpus 3",
        "the special token of id 2 is encoded as [1, 1]",
        "the special token of id 3 is encoded as None",
    ):
        assert problem in str(caught.value)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the folder of the scripts."""
    monkeypatch.setattr(fresh_process, "__file__", str(tmp_path / "fresh_process.py"))
    return tmp_path / "script.py"


def test_the_process_is_isolated(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("RANK", "1")
    script.write_text(
        "import json, os, sys\n"
        "request = json.load(open(sys.argv[1]))\n"
        "facts = {'path': sys.path, 'isolated': sys.flags.isolated, 'environ': dict(os.environ), 'got': request}\n"
        "json.dump(facts, open(sys.argv[2], 'w'))\n"
    )
    facts = run_fresh("script.py", {"a": 1})
    assert facts["got"] == {"a": 1}
    assert facts["isolated"] == 1
    assert "/somewhere" not in facts["path"]
    assert os.getcwd() not in facts["path"]
    assert str(script.parent) not in facts["path"]
    assert "RANK" not in facts["environ"]
    assert facts["environ"]["HF_HUB_OFFLINE"] == "1"


def test_a_failing_script_tells_its_last_line(script: Path) -> None:
    script.write_text("raise ValueError('no such thing')")
    with pytest.raises(FreshProcessError, match=r"ValueError: no such thing"):
        run_fresh("script.py", {})
    script.write_text("import sys; sys.exit(7)")
    with pytest.raises(FreshProcessError, match="exit status 7"):
        run_fresh("script.py", {})
