"""`start`: weights of a folder or of a run, the tokenizers compared, ids mapped; refusals that name the difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.export.run import export_run
from pipeline.models.build import stock_state_dict
from pipeline.models.starting_points import MEAN
from pipeline.train.run import train
from pipeline.train.setup import make_model
from pipeline.train.start_weights import load_start, random_rows, read_vocabulary
from pipeline.train.streams import open_streams
from tests.runs import load, weights_of, write_config
from tests.unit.export.export_cases import make_corpus

EMBEDDING = "bert.embeddings.word_embeddings.weight"
FEW = ("--train.steps", "3", "--evaluation.every_steps", "0", "--evaluation.rows", "1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``corpus``, ``run`` of three steps on it, and ``hf``, its export."""
    root = tmp_path_factory.mktemp("trained")
    make_corpus(root / "corpus", "bert")
    train(load(write_config(root, root / "corpus"), *FEW))  # type: ignore[arg-type]
    export_run(root / "run", root / "hf")
    return root


def started(trained: Path, directory: Path, *overrides: str, corpus: Path | None = None) -> tuple[Any, RunConfig]:
    """A model of a new run with these settings, its start loaded."""
    path = write_config(directory, corpus or trained / "corpus")  # type: ignore[arg-type]
    config = load(path, *FEW, *overrides)
    streams = open_streams(config)
    model = make_model(config, streams)
    load_start(model, config, streams)
    return model, config


@pytest.mark.parametrize("source", ["from_pretrained", "from_run"])
def test_weights_of_a_folder_and_of_a_run(source: str, trained: Path, tmp_path: Path) -> None:
    where = {"from_pretrained": trained / "hf", "from_run": trained / "run"}[source]
    model, _ = started(trained, tmp_path, f"--start.{source}", str(where), "--seed", "7")
    expected = weights_of(trained / "run", 3)
    found = stock_state_dict(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_run_trains_from_them_and_resumes_without_them(trained: Path, tmp_path: Path) -> None:
    """The source is read once: a resume has the weights of its checkpoint."""
    source = shutil.copytree(trained / "hf", tmp_path / "source")
    path = write_config(tmp_path, trained / "corpus")  # type: ignore[arg-type]
    overrides = (*FEW, "--start.from_pretrained", str(source), "--optimizer.learning_rate", "1e-30")
    train(load(path, *overrides))
    before, after = weights_of(trained / "run", 3), weights_of(tmp_path / "run", 3)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    shutil.rmtree(source)
    outcome = train(load(path, *overrides[2:], "--train.steps", "5"))
    assert (outcome.step, outcome.finished) == (5, True)


def other_tokenizer(trained: Path, directory: Path, change: Any) -> Path:
    """A copy of the export whose tokenizer is changed by ``change(vocabulary)``."""
    folder = shutil.copytree(trained / "hf", directory / "other")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    change(tokenizer["model"]["vocab"])
    path.write_text(json.dumps(tokenizer))
    return folder


def test_another_tokenizer_is_refused_with_the_difference(trained: Path, tmp_path: Path) -> None:
    def swap(vocabulary: dict[str, int]) -> None:
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    folder = other_tokenizer(trained, tmp_path, swap)
    wanted = r"of which 2 differ; 'a' is 6 there, 5 here, 'b' is 5 there, 6 here\. Build the corpus with that tokenizer"
    with pytest.raises(UserError, match=wanted):
        started(trained, tmp_path, "--start.from_pretrained", str(folder))


def test_more_ids_take_the_mean(trained: Path, tmp_path: Path) -> None:
    """The corpus has the last ids beside those of the source."""

    def shorten(vocabulary: dict[str, int]) -> None:
        for token in [token for token, number in vocabulary.items() if number >= 55]:
            del vocabulary[token]

    folder = other_tokenizer(trained, tmp_path, shorten)
    with pytest.raises(UserError, match=r"of which 5 differ; .*set start\.extend_vocabulary"):
        started(trained, tmp_path, "--start.from_pretrained", str(folder))
    model, _ = started(trained, tmp_path, "--start.from_pretrained", str(folder), "--start.extend_vocabulary", "true")
    old, new = weights_of(trained / "run", 3)[EMBEDDING], stock_state_dict(model)[EMBEDDING]
    assert torch.equal(new[:55], old[:55])
    assert torch.equal(new[55:], new[55].expand(5, -1))
    assert not torch.equal(new[55], old[55])


def test_a_random_mapping_keeps_special_tokens(trained: Path, tmp_path: Path) -> None:
    arguments = ("--start.from_pretrained", str(trained / "hf"), "--model.remap_vocabulary", "random")
    model, _ = started(trained, tmp_path / "a", *arguments)
    old, new = weights_of(trained / "run", 3)[EMBEDDING], stock_state_dict(model)[EMBEDDING]
    assert torch.equal(new[:5], old[:5])  # [PAD] [UNK] [CLS] [SEP] [MASK]
    assert not torch.equal(new, old)
    assert torch.equal(new.sort(0).values, old.sort(0).values)
    again, _ = started(trained, tmp_path / "b", *arguments)
    other, _ = started(trained, tmp_path / "c", *arguments, "--seed", "1")
    assert torch.equal(stock_state_dict(again)[EMBEDDING], new)
    assert not torch.equal(stock_state_dict(other)[EMBEDDING], new)


def test_random_rows_come_again_where_there_are_too_few() -> None:
    theirs, ours = {"[PAD]": 0, "a": 1, "b": 2, "<mask>": 3}, {"[PAD]": 2, "<mask>": 0}
    rows = random_rows(8, 4, theirs, ours, seed=5)
    assert (rows[2], rows[0]) == (0, 3)
    others = np.delete(rows, [0, 2])
    assert sorted(others.tolist()) == [1, 1, 1, 2, 2, 2]
    assert sorted(random_rows(8, 200, {}, {}, 0).tolist()) == sorted(set(random_rows(8, 200, {}, {}, 0).tolist()))


def test_a_given_mapping(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = [3, MEAN, *range(58)]
    path.write_text(json.dumps(rows))
    arguments = ("--start.from_pretrained", str(trained / "hf"), "--model.remap_vocabulary", str(path))
    model, _ = started(trained, tmp_path, *arguments)
    old, new = weights_of(trained / "run", 3)[EMBEDDING], stock_state_dict(model)[EMBEDDING]
    assert torch.equal(new[0], old[3])
    torch.testing.assert_close(new[1], old.mean(0))
    assert torch.equal(new[2:], old[:58])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[0, 1]", r"has 2 rows; the model has 60 ids"),
        ("{}", "is no JSON list of whole numbers"),
        ("[0.5]", "is no JSON list of whole numbers"),
        ("[", "cannot be read"),
        (json.dumps([60] * 60), r"names rows 60 to 60; the source has 0 to 59 \(or -1\)"),
        (json.dumps([-2] * 60), r"names rows -2 to -2"),
    ],
)
def test_a_mapping_that_is_none(content: str, message: str, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    arguments = ("--start.from_pretrained", str(trained / "hf"), "--model.remap_vocabulary", str(path))
    with pytest.raises(UserError, match=message):
        started(trained, tmp_path, *arguments)


def test_vocabularies_of_older_folders(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    assert read_vocabulary(tmp_path) == {"a": 0, "b": 1}
    (tmp_path / "vocab.txt").write_text("[PAD]\nb\nc\n")
    assert read_vocabulary(tmp_path) == {"[PAD]": 0, "b": 1, "c": 2}
    listed = {"model": {"vocab": [["<s>", 0.0], ["x", -1.5]]}, "added_tokens": [{"content": "<new>", "id": 2}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(listed))
    assert read_vocabulary(tmp_path) == {"<s>": 0, "x": 1, "<new>": 2}
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        read_vocabulary(tmp_path)


def test_a_source_without_a_tokenizer_is_taken_as_it_is(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(trained / "hf", tmp_path / "other")
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)
    model, _ = started(trained, tmp_path, "--start.from_pretrained", str(folder))
    assert torch.equal(stock_state_dict(model)[EMBEDDING], weights_of(trained / "run", 3)[EMBEDDING])
    assert "has no tokenizer to compare with that of the corpus" in caplog.text


def test_a_run_that_is_none(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"start\.from_run: .*nowhere holds no run \(no config\.yaml\)"):
        started(trained, tmp_path, "--start.from_run", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"start\.step: .* has no checkpoint of step 2; there are \[3\]"):
        started(trained, tmp_path, "--start.from_run", str(trained / "run"), "--start.step", "2")
    alone = shutil.copytree(trained / "run", tmp_path / "alone")
    shutil.rmtree(alone / "checkpoints")
    with pytest.raises(UserError, match=r"alone: it has no checkpoint"):
        started(trained, tmp_path, "--start.from_run", str(alone))
    moved = shutil.copytree(trained / "run", tmp_path / "moved")
    config = moved / "config.yaml"
    config.write_text(config.read_text().replace(str(trained / "corpus"), str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"its corpus, by whose tokenizer its ids are known, cannot be read"):
        started(trained, tmp_path, "--start.from_run", str(moved))
