"""The text of sbatch scripts: options, settings, one body for the file in slurm/ and for those that are written."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.launch.sbatch import JobOptions, sbatch_script, time_limit_seconds

REPOSITORY = Path(__file__).resolve().parents[3]
JOB = JobOptions(nodes=2, time="12:00:00", ranks_per_node=4, name="bert", log="bert-%j.log", directory="/shared/me")


def directives(text: str) -> list[str]:
    return [
        word
        for line in text.splitlines()
        if line.startswith("#SBATCH ")
        for word in shlex.split(line[8:], comments=True)
    ]


def body(text: str) -> str:
    return text[text.index("\nset -u\n") :]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:02:03", 3723),
        ("2-00", 172800),
        ("1-2:03", 93780),
        ("1-02:03:04", 93784),
    ],
)
def test_time_limits_as_sbatch_reads_them(text: str, seconds: int) -> None:
    assert time_limit_seconds(text) == seconds


def test_no_time_limit() -> None:
    with pytest.raises(UserError, match=r"--time is '12h'; give minutes \(90\), hours \(12:00:00\) or days"):
        time_limit_seconds("12h")
    with pytest.raises(UserError, match=r"--time is '0:00': no time at all"):
        time_limit_seconds("0:00")


def test_what_a_job_asks_for() -> None:
    options = replace(
        JOB,
        gpus_per_node=4,
        cpus_per_task=12,
        memory="200G",
        partition="gpu",
        account="lab",
        qos="long",
        signal_seconds=180,
        more=["--constraint=a100|h100"],
    )
    assert directives(sbatch_script(options, "run.yaml", [])) == [
        *("--job-name=bert", "--chdir=/shared/me", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"),
        *("--cpus-per-task=12", "--mem=200G", "--time=12:00:00", "--partition=gpu", "--account=lab", "--qos=long"),
        *("--signal=USR1@180", "--open-mode=append", "--output=bert-%j.log", "--requeue", "--constraint=a100|h100"),
    ]


def test_what_is_not_asked_for_is_not_there() -> None:
    text = sbatch_script(JOB, "run.yaml", [])
    absent = ("--gpus", "--partition", "--account", "--qos", "--signal")
    assert not [word for word in directives(text) if word.startswith(absent)]
    assert not [word for word in ("module", "SOCKET_IFNAME=ib", "srun+=", "chained=") if word in text]


def test_the_file_in_slurm_and_a_written_script_are_one_text() -> None:
    template = (REPOSITORY / "slurm" / "train.sbatch").read_text()
    assert template == files("pipeline.launch").joinpath("train.sbatch").read_text()
    assert body(template) == body(sbatch_script(JOB, "run.yaml", []))
    assert "# Settings: " not in sbatch_script(JOB, "run.yaml", [])
    same = ("--requeue", "--open-mode=append", "--cpus-per-task=8", "--mem=0")
    assert set(same) <= {*directives(template)} & {*directives(sbatch_script(JOB, "run.yaml", []))}


def run_settings(text: str, directory: Path, prelude: str = "") -> list[str]:
    """What the script has set when the body begins: its arguments, srun's words, variables."""
    settings = text[: text.index("\nset -u\n")]
    show = 'printf "%s\\n" "$@" -- "${srun[@]}" -- "${NCCL_SOCKET_IFNAME:-}" "${GLOO_SOCKET_IFNAME:-}" "$PATH"'
    script = directory / "settings"
    script.write_text(f"{prelude}\n{settings}\n{show}")
    done = subprocess.run(["bash", script, "--seed", "3"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_settings_reach_bash_as_they_were_given(tmp_path: Path) -> None:
    options = replace(JOB, interface="ib0", commands_directory="/opt/my venv/bin", setup=["SUFFIX=x", "set -- unused"])
    overrides = ["--data.cache.directory", "$TMPDIR/it's", "--run_directory=runs/a b"]
    shown = run_settings(sbatch_script(options, "my config.yaml", overrides), tmp_path, 'TMPDIR=/x; PATH="/bin"')
    assert shown[:4] == ["my config.yaml", *overrides]
    assert shown[4:] == ["unused", "--", "srun", "--kill-on-bad-exit=1", "--", "ib0", "ib0", "/opt/my venv/bin:/bin"]


def test_arguments_of_sbatch_follow_those_of_the_script(tmp_path: Path) -> None:
    shown = run_settings(sbatch_script(JOB, "run.yaml", ["--seed", "1"]), tmp_path)
    assert shown[: shown.index("--")] == ["run.yaml", "--seed", "1", "--seed", "3"]


def test_modules_are_loaded_and_a_failing_one_ends_the_job(tmp_path: Path) -> None:
    text = sbatch_script(replace(JOB, modules=["cuda/13", "gcc"]), "run.yaml", [])
    assert run_settings(text, tmp_path, 'module() { echo "modules: $*"; }')[0] == "modules: load cuda/13 gcc"
    with pytest.raises(subprocess.CalledProcessError):
        run_settings(text, tmp_path, "module() { return 1; }")


def test_containers(tmp_path: Path) -> None:
    options = replace(JOB, container="nvcr.io#lab/pretrain", mounts=["/data", "/scratch/me:/cache"])
    shown = run_settings(sbatch_script(options, "run.yaml", []), tmp_path)
    srun = shown[shown.index("srun") :]
    assert srun[2:5] == [
        "--container-image=nvcr.io#lab/pretrain",
        "--container-mounts=/shared/me:/shared/me,/data:/data,/scratch/me:/cache",
        "--container-workdir=/shared/me",
    ]
    options = replace(options, container="pretrain.sif", container_runtime="apptainer", gpus_per_node=2)
    shown = run_settings(sbatch_script(options, "run.yaml", []), tmp_path)
    assert shown[shown.index("apptainer") : shown.index("pretrain.sif") + 1] == [
        *("apptainer", "exec", "--nv", "--bind", "/shared/me,/data,/scratch/me:/cache", "--pwd", "/shared/me"),
        "pretrain.sif",
    ]
    assert "--nv" not in sbatch_script(replace(options, gpus_per_node=0), "run.yaml", [])
