"""Any number of processes, killed or not: the same bytes; what was finished is not done again."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.base.errors import UserError
from pipeline.config.corpus import CorpusConfig, SourceConfig
from pipeline.config.loading import to_yaml
from pipeline.corpus import build as build_module
from pipeline.corpus.build import build_corpus
from pipeline.corpus.executor import CorpusExecutor, worker_pool
from pipeline.corpus.stages import texts_stage
from pipeline.corpus.workspace import Workspace, locked
from tests.unit.corpus.writing import config_of, files_of, make_texts, write_jsonl

REPOSITORY = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys, time
from pathlib import Path
from pipeline.config.loading import load_corpus_config
from pipeline.corpus.build import build_corpus
from pipeline.corpus.sharding import ShardStep
gather = ShardStep._gather
def slow_gather(step, dealt):
    time.sleep(0.3)  # so that there is a middle in which to kill it
    return gather(step, dealt)
ShardStep._gather = slow_gather
if __name__ == "__main__":
    build_corpus(load_corpus_config(sys.argv[1]), Path(sys.argv[2]), processes=int(sys.argv[3]))
"""


def quiet() -> Console:
    return Console(file=io.StringIO())


def reference(directory: Path) -> tuple[CorpusConfig, dict[str, bytes]]:
    """A config with many tasks, and the files of its corpus."""
    texts = make_texts(120)
    write_jsonl(directory / "in/a.jsonl", [{"text": text} for text in [*texts[:60], *texts[20:40]]])
    write_jsonl(directory / "in/b.jsonl", [{"text": text} for text in texts[50:]])
    config = config_of(SourceConfig("a", "jsonl", str(directory / "in")), tasks=12)
    build_corpus(config, directory / "reference", processes=1, console=quiet())
    return config, files_of(directory / "reference")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[CorpusConfig, dict[str, bytes]]:
    return reference(tmp_path_factory.mktemp("resume"))


def test_two_processes_give_the_same_bytes(case: tuple[CorpusConfig, dict[str, bytes]], tmp_path: Path) -> None:
    config, expected = case
    summary = build_corpus(config, tmp_path / "out", processes=2, console=quiet())
    assert files_of(tmp_path / "out") == expected
    assert summary.documents == 120
    assert summary.drops == {"duplicate": 30}


def completed(output: Path) -> dict[str, int]:
    """Completion marks of all stages and when they were made."""
    marks = (output / ".build/stages").glob("*/completions/*")
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in marks}


def descendants(process: int) -> set[int]:
    """Processes below another one, from /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)


@pytest.mark.parametrize(("processes", "stage"), [(2, "texts"), (1, "shards")])
def test_a_killed_build_goes_on(
    case: tuple[CorpusConfig, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    stage: str,
) -> None:
    config, expected = case
    (tmp_path / "corpus.yaml").write_text(to_yaml(config))
    output = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "corpus.yaml"), str(output), str(processes)]
    child = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(
        lambda: len(list((output / f".build/stages/{stage}/completions").glob("*"))) >= 2 or child.poll() is not None,
        f"two completed tasks of {stage}",
    )
    family = descendants(child.pid)
    child.send_signal(signal.SIGKILL)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, errors.decode()
    wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in family), "the workers' end")
    assert not (output / "manifest.json").exists()
    finished = completed(output)
    seen: dict[str, int] = {}

    monkeypatch.setattr(build_module.shutil, "rmtree", _observed(build_module.shutil.rmtree, output / ".build", seen))
    build_corpus(config, output, processes=1, console=quiet())
    assert files_of(output) == expected
    assert len(finished) >= 2
    assert {name: made for name, made in seen.items() if name in finished} == finished
    assert len(seen) > len(finished)


def _observed(rmtree: Callable[..., None], root: Path, seen: dict[str, int]) -> Callable[..., None]:
    """``rmtree`` that notes the completion marks before the workspace goes."""

    def observed(path: Path, *arguments: object, **options: object) -> None:
        if Path(path) == root:
            seen.update(completed(root.parent))
        rmtree(path, *arguments, **options)

    return observed


class Interrupted(Exception):
    pass


def interrupt(monkeypatch: pytest.MonkeyPatch, config: CorpusConfig, output: Path) -> None:
    """A build that stops before its shards."""

    def stop(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "deal_documents", stop)
        with pytest.raises(Interrupted):
            build_corpus(config, output, processes=1, console=quiet())


def test_another_config_does_not_go_on(
    case: tuple[CorpusConfig, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = case
    interrupt(monkeypatch, config, tmp_path / "out")
    with pytest.raises(UserError, match="holds an unfinished build of another config") as caught:
        build_corpus(replace(config, seed=3), tmp_path / "out", processes=1, console=quiet())
    assert "Go back to that config to finish it. Choose another --output" in str(caught.value)
    build_corpus(config, tmp_path / "out", processes=1, console=quiet())
    assert files_of(tmp_path / "out") == expected


def test_a_build_killed_at_its_very_end_leaves_nothing_behind(
    case: tuple[CorpusConfig, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = case
    output = tmp_path / "out"

    def stop(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "publish_directory", stop)
        with pytest.raises(Interrupted):
            build_corpus(config, output, processes=1, console=quiet())
    # As kill -9 leaves them: no handler removes its file.
    (output / "train/.00000.tar.4711.tmp").write_bytes(b"half a shard")
    (output / ".manifest.json.4711.tmp").write_bytes(b"{")
    build_corpus(config, output, processes=1, console=quiet())
    assert files_of(output) == expected


def test_changed_input_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = make_texts(40)
    path = write_jsonl(tmp_path / "in/a.jsonl", [{"text": text} for text in texts[:30]])
    config = config_of(SourceConfig("a", "jsonl", str(tmp_path / "in")))
    interrupt(monkeypatch, config, tmp_path / "out")
    write_jsonl(path, [{"text": text} for text in texts])
    printed = io.StringIO()
    summary = build_corpus(config, tmp_path / "out", processes=1, console=Console(file=printed))
    assert summary.documents == 40
    assert "The input has changed since this build was interrupted: starting over." in printed.getvalue()
    build_corpus(config, tmp_path / "fresh", processes=1, console=quiet())
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_two_builds_do_not_share_an_output(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", [{"text": text} for text in make_texts(3)])
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom pathlib import Path\nfrom pipeline.corpus.workspace import Workspace, locked\n"
            "with locked(Workspace(Path(sys.argv[1]))):\n    print('held', flush=True)\n    time.sleep(60)",
            str(tmp_path / "out"),
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    try:
        config = config_of(SourceConfig("a", "jsonl", str(tmp_path / "in")))
        with pytest.raises(UserError, match="Another `pretrain corpus build` is writing"):
            build_corpus(config, tmp_path / "out", processes=1, console=quiet())
    finally:
        holder.kill()
        holder.wait()
    with locked(Workspace(tmp_path / "out")):
        pass


def test_an_error_of_a_worker_arrives_as_it_was_raised(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = write_jsonl(tmp_path / "plain", [{"text": text} for text in make_texts(50)]).read_bytes()
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(content)[: -20 if name == "b" else None])
    config = config_of(SourceConfig("s", "jsonl", str(tmp_path)), tasks=2)
    messages = []
    for processes in (1, 2):
        with pytest.raises(UserError) as caught:
            build_corpus(config, tmp_path / "out", processes=processes, console=quiet())
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert f"{tmp_path}/b.jsonl.gz:" in messages[0]
    assert "Traceback" not in capfd.readouterr().err


def test_a_killed_worker_is_noticed() -> None:
    def kill_a_worker() -> None:
        with worker_pool(2) as pool:
            assert pool is not None
            pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()

    with pytest.raises(UserError, match=r"worker process was killed.*fewer processes \(--processes 1; this time 2\)"):
        kill_a_worker()


def test_the_stages_run_on_the_stock_executor(case: tuple[CorpusConfig, dict[str, bytes]], tmp_path: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor

    from pipeline.corpus.counters import make_counters
    from pipeline.corpus.sources import cut_into_units, find_files
    from pipeline.corpus.units import group_units, write_tasks

    config, _ = case
    found = []
    for name in ("ours", "stock"):
        workspace = Workspace(tmp_path / name)
        tasks = group_units(cut_into_units(find_files(config.sources, workspace.root), config.tasks), config.tasks)
        write_tasks(workspace.tasks, tasks)
        stage = texts_stage(config, workspace, len(tasks), 0)
        make_counters(workspace.counters("texts"), len(tasks))
        logs = workspace.stage("texts")
        if name == "ours":
            CorpusExecutor(stage.pipeline, stage.num_tasks, logs, None).run()
        else:
            LocalPipelineExecutor(stage.pipeline, tasks=stage.num_tasks, workers=1, logging_dir=str(logs)).run()
        found.append(files_of(workspace.texts))
    assert found[0] == found[1]
    assert len(found[0]) >= 5 * 6


def test_workers_import_neither_torch_nor_transformers() -> None:
    program = "import pipeline.corpus.stages, pipeline.corpus.build, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert not {"torch", "transformers", "datasets", "pyarrow", "spacy", "nltk"} & set(done.stdout.split())
