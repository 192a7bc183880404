"""What an import or export refuses: one clear message, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from pipeline.base.errors import UserError
from pipeline.cli import main
from pipeline.corpus.exporting import export_corpus
from pipeline.corpus.importing import import_corpus
from pipeline.corpus.tokenizer import TokenizerFacts
from pipeline.data.stream import open_stream
from pipeline.shards.writer import ShardWriter
from tests.unit.corpus.foreign_files import write_pair, write_tokenizer


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenizerFacts]:
    directory = tmp_path_factory.mktemp("gpt2") / "tokenizer"
    return directory, write_tokenizer(directory, "gpt2")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, gpt2: tuple[Path, TokenizerFacts]) -> Path:
    directory = tmp_path_factory.mktemp("refusals")
    source = write_pair(directory / "a", [[[number + 1, 5]] for number in range(30)])
    import_corpus(source, directory / "corpus", tokenizer=str(gpt2[0]), validation_share=0.1)
    return directory / "corpus"


def refused(source: Path, tokenizer: Path | str, **options: Any) -> str:
    """The message of an import that must fail and leave its parent directory as it was."""
    output = source.parent / "refused"
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        import_corpus(source, output, tokenizer=str(tokenizer), **options)
    assert sorted(source.parent.rglob("*")) == before
    return str(caught.value)


def saved(directory: Path, **columns: Any) -> Path:
    datasets.Dataset.from_dict(columns).save_to_disk(str(directory))
    return directory


def test_nothing_that_can_be_imported(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty is nothing that can be imported. Give a Megatron-LM pair" in refused(tmp_path / "empty", gpt2[0])
    assert "is nothing that can be imported" in refused(tmp_path / "none", gpt2[0])
    assert "holds no .idx file of Megatron-LM" in refused(tmp_path / "empty", gpt2[0], form="megatron")
    assert "is no folder of `datasets.save_to_disk`" in refused(tmp_path / "empty", gpt2[0], form="datasets")
    assert "none.idx does not exist" in refused(tmp_path / "none", gpt2[0], form="megatron")


def test_a_damaged_pair_leaves_nothing(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    source = write_pair(tmp_path / "a", [[[1, 2, 3]]])
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:-1])
    assert "it is truncated" in refused(source, gpt2[0])


def test_ids_of_another_tokenizer(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    tokenizer, facts = gpt2
    source = write_pair(tmp_path / "a", [[[1, 2]], [[3, facts.vocab_size]]])
    message = refused(source, tokenizer)
    assert f"Document 'a/1' holds the id {facts.vocab_size} at token 1" in message
    source = saved(tmp_path / "saved", input_ids=[[1, facts.vocab_size - 1, 2]])
    assert "Document 'saved/0' holds the special id" in refused(source, tokenizer)


def test_no_tokenizer_and_another_one(tmp_path: Path, corpus: Path) -> None:
    source = write_pair(tmp_path / "a", [[[1, 2]]])
    assert "--tokenizer: '/nowhere' is not a folder" in refused(source, "/nowhere")
    export_corpus(corpus, tmp_path / "out", form="megatron")
    write_tokenizer(tmp_path / "bert", "bert")
    message = refused(tmp_path / "out", tmp_path / "bert")
    assert f"bert is not the tokenizer of {tmp_path / 'out'}, which stands in {tmp_path / 'out/tokenizer'}" in message


@pytest.mark.parametrize("documents", [[], [[[]], [[]]]])
def test_an_empty_source(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts], documents: Any) -> None:
    assert "a holds no tokens. Give a source with at least one document." in refused(
        write_pair(tmp_path / "a", documents), gpt2[0]
    )


def test_a_source_of_special_ids_only(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    eod = gpt2[1].vocab_size - 1
    message = refused(write_pair(tmp_path / "a", [[[eod]], [[eod, eod]]]), gpt2[0])
    assert "a holds no text to train on: its documents hold special ids only." in message


def test_columns_that_are_not_there_or_no_ids(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    tokenizer = gpt2[0]
    message = refused(saved(tmp_path / "text", text=["a"], label=[1]), tokenizer)
    assert "text has no column 'input_ids'; it has text, label" in message
    assert "column 'input_ids' is list<element: double>" in refused(
        saved(tmp_path / "float", input_ids=[[0.5]]), tokenizer
    ).replace("item", "element")
    assert "is string; lists of integers are needed" in refused(saved(tmp_path / "string", input_ids=["a"]), tokenizer)
    message = refused(saved(tmp_path / "null", input_ids=[[1], None]), tokenizer)
    assert "'input_ids' of document 'null/1' is null or holds a null" in message
    message = refused(saved(tmp_path / "id", input_ids=[[1], [2]], id=["a", None]), tokenizer)
    assert "row 1 has no id" in message
    message = refused(saved(tmp_path / "starts", input_ids=[[1], [2, 3]], sentence_starts=[[0], [0, 2]]), tokenizer)
    assert "'sentence_starts' of document 'starts/1' must increase and stay below its number of tokens" in message


def test_damaged_data_sets(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    folder = saved(tmp_path / "saved", input_ids=[[1, 2]] * 10)
    (folder / "data-00000-of-00001.arrow").write_bytes(b"")
    assert f"`datasets` cannot load {folder}: " in refused(folder, gpt2[0])
    (tmp_path / "parquet").mkdir()
    table = pyarrow.table({"input_ids": [[1, 2]]})
    pyarrow.parquet.write_table(table, tmp_path / "parquet/a.parquet")
    pyarrow.parquet.write_table(table.rename_columns(["ids"]), tmp_path / "parquet/b.parquet")
    assert "b.parquet has no column 'input_ids', unlike" in refused(tmp_path / "parquet", gpt2[0])
    (tmp_path / "parquet/a.parquet").write_bytes(b"PAR1")
    assert "a.parquet is damaged: " in refused(tmp_path / "parquet", gpt2[0])


def test_splits_that_cannot_be_chosen(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    for split in ("train", "validation", "test"):
        write_pair(tmp_path / "pairs" / split, [[[1, 2]]])
    source = tmp_path / "pairs"
    message = refused(source, gpt2[0], splits=["dev"])
    assert "has no split 'dev'; it has test, train, validation. Choose --split among them." in message
    message = refused(source, gpt2[0], splits=["train", "test"])
    assert "choose one with --split (a share of it becomes the validation split), or `--split train" in message
    message = refused(source, gpt2[0], validation_share=0.1)
    assert "has a validation split of its own: leave --validation-share out" in message
    assert "shards.validation_share: 1.5 is outside" in refused(source, gpt2[0], splits=["test"], validation_share=1.5)


def test_an_output_that_exists(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts], corpus: Path) -> None:
    source = write_pair(tmp_path / "a", [[[1, 2]]])
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"--output .*out exists already\. Choose another --output, or delete it first"):
        import_corpus(source, tmp_path / "out", tokenizer=str(gpt2[0]))
    with pytest.raises(UserError, match=r"--output .*out exists already"):
        export_corpus(corpus, tmp_path / "out", form="megatron")
    assert list((tmp_path / "out").iterdir()) == []


def full_disk(*_: object) -> None:
    raise OSError(28, os.strerror(28))


def test_a_full_disk(
    tmp_path: Path, gpt2: tuple[Path, TokenizerFacts], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_pair(tmp_path / "a", [[[1, 2]]])
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "_write_member", full_disk)
        message = refused(source, gpt2[0])
    assert f"The disk is full while writing {tmp_path / 'refused'}" in message
    assert "an import needs the size of the tokens" in message
    for form, place in (("megatron", "megatron.MegatronWriter.add"), ("datasets", "tokenized_datasets._arrow_lists")):
        with monkeypatch.context() as patch:
            patch.setattr(f"pipeline.corpus.{place}", full_disk)
            with pytest.raises(UserError, match=r"The disk is full while writing .*nothing of this attempt stays"):
                export_corpus(corpus, tmp_path / "out", form=form)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


def test_exports_that_cannot_be(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"--split dev: .* has the splits train, validation"):
        export_corpus(corpus, tmp_path / "out", form="megatron", splits=["dev"])
    with pytest.raises(UserError, match="--format csv: choose one of megatron, datasets"):
        export_corpus(corpus, tmp_path / "out", form="csv")
    with pytest.raises(UserError, match="has no sentence"):
        export_corpus(corpus, tmp_path / "out", form="megatron", sentences=True)
    assert main(["corpus", "export", str(tmp_path), "--output", str(tmp_path / "out"), "--format", "megatron"]) == 2
    assert "No corpus at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_end_of_document_that_the_tokenizer_lacks(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "bert", "bert")
    import_corpus(write_pair(tmp_path / "a", [[[7, 8]]]), tmp_path / "corpus", tokenizer=str(tmp_path / "bert"))
    with pytest.raises(UserError, match="--append-eod: the tokenizer of this corpus has no eos token to append"):
        export_corpus(tmp_path / "corpus", tmp_path / "out", form="megatron", append_eod=True)


def test_whole_words_of_a_corpus_that_does_not_know_them(corpus: Path) -> None:
    message = r"does not say where words begin\. .*\(an import knows the words of WordPiece only\)"
    with pytest.raises(UserError, match=message):
        open_stream(corpus, kind="gpt", sequence_length=64, global_batch_size=4, words=True)


def test_a_damaged_corpus_is_not_exported(tmp_path: Path, corpus: Path) -> None:
    shutil.copytree(corpus, tmp_path / "corpus")
    shard = tmp_path / "corpus/train/00000.tar"
    content = bytearray(shard.read_bytes())
    content[650] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"00000\.tar"):
        export_corpus(tmp_path / "corpus", tmp_path / "out", form="datasets")
    assert not (tmp_path / "out").exists()


def test_names_that_are_not_utf8_are_refused(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    for folder, file in ((b"plain", b"\xff.parquet"), (b"plain2/\xfe", b"a.parquet"), (b"\xff", b"a.parquet")):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + folder))
        path.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.table({"input_ids": [[5, 6]]}), tmp_path / "table")
        (tmp_path / "table").rename(path / os.fsdecode(file))
        source = path.parent if path.parent != tmp_path else path
        assert "is not UTF-8. Rename it." in refused(source, gpt2[0])
