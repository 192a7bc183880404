"""What a user can get wrong: one message on standard error, exit status 2, no traceback, nothing lost."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import read_manifest, write_manifest
from tests.runs import tiny_corpus, write_config
from tests.unit.train.test_saving import forge


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("pristine") / "corpus").directory


@pytest.fixture
def corpus(pristine: Path, tmp_path: Path) -> Path:
    """A corpus of one's own to break."""
    return Path(shutil.copytree(pristine, tmp_path / "corpus"))


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path, corpus)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must be refused; returns its message."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.startswith("pretrain: error: ")
    return message


def test_missing_config_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "the file does not exist" in error_of(capsys, "train", tmp_path / "nope.yaml")


def test_unknown_key_on_the_command_line(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    message = error_of(capsys, "train", config, "--data.sequence_len", 64)
    assert "data.sequence_len: unknown key. Did you mean `data.sequence_length`?" in message


def test_missing_corpus(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    message = error_of(capsys, "train", config, "--data.corpus", tmp_path / "nowhere")
    assert "nowhere" in message
    assert "does not exist" in message


def test_sequence_longer_than_positions(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    message = error_of(capsys, "train", config, "--data.sequence_length", 128)
    assert "data.sequence_length: 128 is longer than the model's positions (model.max_positions: 64)" in message


def test_vocabulary_smaller_than_the_tokenizer(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    message = error_of(capsys, "train", config, "--model.vocab_size", 150)
    assert "model.vocab_size: 150 is smaller than the tokenizer of corpus" in message
    assert "(200 ids)" in message


def test_a_tokenizer_that_did_not_write_the_corpus(
    capsys: pytest.CaptureFixture[str], config: Path, corpus: Path
) -> None:
    (corpus / "tokenizer/tokenizer.json").write_text('{"other": 1}')
    message = error_of(capsys, "train", config)
    assert "but the corpus was built with" in message


def test_a_corpus_without_the_tokens_of_the_objective(
    capsys: pytest.CaptureFixture[str], config: Path, corpus: Path
) -> None:
    manifest = read_manifest(LocalFiles(corpus))
    write_manifest(corpus, replace(manifest, special_ids={**manifest.special_ids, "mask": None}))
    assert "mlm needs a mask token and the tokenizer of the corpus has none" in error_of(capsys, "train", config)


def test_a_damaged_shard(capsys: pytest.CaptureFixture[str], config: Path, corpus: Path) -> None:
    shard = corpus / "train/00001.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    message = error_of(capsys, "train", config)
    assert "00001.tar" in message
    assert "00001.tar" in error_of(capsys, "corpus", "verify", corpus)


def test_a_flipped_byte_is_found_by_verify(capsys: pytest.CaptureFixture[str], corpus: Path) -> None:
    shard = corpus / "train/00002.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert "00002.tar" in error_of(capsys, "corpus", "verify", corpus)


@pytest.mark.parametrize("command", [["verify"], ["count-rows", "--kind", "bert", "--sequence-length", "32"]])
def test_commands_that_need_the_local_copy_refuse_a_url(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["corpus", *command, "https://host/mine"])
    assert ended.value.code == 2
    assert "https://host/mine is a URL; give the directory of the corpus where it is local" in capsys.readouterr().err


def test_no_such_step(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert "--step 21: this run has steps 1 to 20 (train.steps)" in error_of(capsys, "batch", config, "--step", 21)
    assert "--step 0: this run has steps 1 to 20" in error_of(capsys, "batch", config, "--step", 0)
    message = error_of(capsys, "batch", config, "--step", 1, "--world-size", 9)
    assert "--world-size 9: 1 to 8 ranks can share a batch" in message


def test_single_on_two_ranks_and_more_ranks_than_rows(
    capsys: pytest.CaptureFixture[str], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "`single` runs one rank, but 2 were started; use `ddp` or `zero1`" in error_of(capsys, "train", config)
    assert not config.with_suffix("").exists()
    monkeypatch.setenv("WORLD_SIZE", "9")
    message = error_of(capsys, "train", config, "--train.strategy", "ddp")
    assert "9 ranks share 8 rows a step (train.global_batch_size, from step 1)" in message


def test_numbers_of_ranks_that_cannot_be(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    for number in (0, -1):
        assert f"{number} ranks: at least 1" in error_of(capsys, "config", "show", config, "--world-size", number)
    message = error_of(capsys, "launch", "torchrun", config, "--processes", 2)
    assert "`single` runs one rank, but 2 were started" in message


def test_cuda_that_is_not_there(
    capsys: pytest.CaptureFixture[str], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = error_of(capsys, "train", config, "--train.device", "cuda")
    assert "train.device: `cuda`, but torch finds no CUDA device here" in message
    message = error_of(capsys, "train", config, "--train.device", "auto", "--train.precision", "fp16")
    assert "`fp16` needs CUDA and this run is on a CPU" in message


def test_a_run_directory_that_is_none(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    message = error_of(capsys, "train", config, "--run_directory", tmp_path / "notes")
    assert "is not empty and holds no run (no config.yaml)" in message
    message = error_of(capsys, "train", config, "--run_directory", tmp_path / "notes/a.txt")
    assert "is a file; name a directory" in message
    assert (tmp_path / "notes/a.txt").read_text() == "mine"


def trained(config: Path, steps: int = 2) -> Path:
    arguments = ["train", str(config), "--train.steps", str(steps), "--schedule.warmup_steps", "0"]
    assert main(arguments) == 0
    return config.with_suffix("")


def test_a_checkpoint_of_another_config(capsys: pytest.CaptureFixture[str], config: Path, corpus: Path) -> None:
    run = trained(config)
    same = ("--schedule.warmup_steps", 0)
    message = error_of(capsys, "train", config, *same, "--seed", 1, "--model.num_layers", 1)
    assert "belongs to another run" in message
    assert "seed: checkpoint 0, now 1" in message
    assert "model.num_layers: checkpoint 2, now 1" in message
    assert "or start a new run with another run_directory" in message
    # Another corpus of the same shape is another run too.
    shutil.rmtree(corpus)
    from tests.corpora import random_lengths, write_corpus

    write_corpus(corpus, random_lengths(1, 3, 30), vocab_size=200)
    assert "corpus_fingerprint: checkpoint" in error_of(capsys, "train", config, *same)
    assert (run / "checkpoints/step-00000002/meta.json").exists()


def test_damaged_checkpoints(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    run = trained(config)
    checkpoint = run / "checkpoints/step-00000002"
    more = ("train", config, "--train.steps", 3, "--schedule.warmup_steps", 0)
    path = checkpoint / "rank-00000.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "all of them are damaged: step-00000002 (rank-00000.safetensors: " in error_of(capsys, *more)
    path.unlink()
    assert "(rank-00000.safetensors: No such file or directory). Put back from a copy" in error_of(capsys, *more)
    meta = json.loads((checkpoint / "meta.json").read_text())
    (checkpoint / "meta.json").write_text(json.dumps({**meta, "format_version": 99}))
    assert "has format 99; this version reads 2: update pretrain" in error_of(capsys, *more)
    (checkpoint / "meta.json").write_text(json.dumps({**meta, "format_version": 1}))
    assert "has format 1; this version reads 2: go on with the version of pretrain that" in error_of(capsys, *more)
    (checkpoint / "meta.json").write_text("{}")
    assert "step-00000002 (meta.json: KeyError('format_version'))" in error_of(capsys, *more)
    (checkpoint / "meta.json").unlink()
    assert "step-00000002 (meta.json is missing)" in error_of(capsys, *more)


def test_checkpoints_of_another_model_or_optimizer(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    checkpoint = trained(config) / "checkpoints/step-00000002"
    more = ("train", config, "--train.steps", 3, "--schedule.warmup_steps", 0)
    content = (checkpoint / "rank-00000.safetensors").read_bytes()
    forge(checkpoint, content.replace(b'"exp_avg_sq/', b'"momentum_x/'))
    message = error_of(capsys, *more)
    assert "does not fit the model and the optimizer of this run: missing: exp_avg_sq/bert.embeddings" in message
    assert "unknown: momentum_x/bert.embeddings" in message
    assert "or start a new run with another run_directory" in message
    forge(checkpoint, content.replace(b"[64,32]", b"[32,64]"))
    assert "of another shape: weight/bert.embeddings.position_embeddings.weight is (32, 64), not (64, 32)" in error_of(
        capsys, *more
    )
    values = 8 + int.from_bytes(content[:8], "little")  # where they begin
    forge(checkpoint, content[:values] + struct.pack("<f", math.nan) + content[values + 4 :])
    assert "has weights that are no numbers (NaN or infinite) in bert.embeddings" in error_of(capsys, *more)


def test_leftovers_of_a_kill_are_cleared_away(config: Path) -> None:
    checkpoints = trained(config) / "checkpoints"
    for leftover in (".step-00000001.deleted", ".step-00000003.1f3a.tmp"):
        (checkpoints / leftover).mkdir()
    assert main(["train", str(config), "--train.steps", "3", "--schedule.warmup_steps", "0"]) == 0
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step-00000002", "step-00000003"]


def test_export_and_report_of_what_is_not_there(
    capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path
) -> None:
    assert "holds no run" in error_of(capsys, "export", tmp_path / "none", "--output", tmp_path / "out")
    assert "none" in error_of(capsys, "report", tmp_path / "none")
    run = trained(config)
    message = error_of(capsys, "export", run, "--output", tmp_path / "out", "--step", 7)
    assert "7" in message
    assert not (tmp_path / "out").exists()


def test_paths_that_refuse(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    run = trained(config)
    below_a_file = config / "below"
    for arguments in (("report", run, "--output", below_a_file), ("export", run, "--output", below_a_file)):
        message = error_of(capsys, *arguments)
        assert f": {config}" in message
        assert "Name another path" in message
    assert "File name too long" in error_of(capsys, "report", run, "--output", tmp_path / ("x" * 300))


@pytest.mark.parametrize("arguments", [["config", "show"], ["config", "show", "--json"]])
def test_a_reader_that_stops_early(arguments: list[str], config: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", *arguments, str(config)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_export_of_a_corpus_that_has_moved(
    capsys: pytest.CaptureFixture[str], config: Path, corpus: Path, tmp_path: Path
) -> None:
    run = trained(config)
    moved = corpus.rename(tmp_path / "moved")
    message = error_of(capsys, "export", run, "--output", tmp_path / "out")
    assert f"the run's corpus is not at {corpus}" in message
    assert "Say where it is with --corpus DIR." in message
    # Found there; this corpus of random tokens has no tokenizer that a stranger could load.
    message = error_of(capsys, "export", run, "--output", tmp_path / "out", "--corpus", moved)
    assert "export refused: the exported folder does not load" in message
    assert not (tmp_path / "out").exists()


def test_unknown_command_and_argument(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["frobnicate"], ["report", "x", "--what"], []):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
