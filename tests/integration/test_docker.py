"""The container image, built for real with buildah on a Debian that debootstrap made, and run.

No engine, no registry: needs root, buildah and debootstrap. pip's configuration on this machine (indexes, certificates,
wheel folders) is handed to the build as volumes; the Dockerfile knows nothing of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MINUTES = 60

pytestmark = [pytest.mark.proof, pytest.mark.timeout(20 * MINUTES)]


def missing_requirement() -> str | None:
    """Why the image cannot be built here, if it cannot."""
    if os.geteuid() != 0:
        return "building an image with buildah in chroot isolation needs root"
    absent = [name for name in ("buildah", "debootstrap", "apt-get") if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


REASON = missing_requirement()
needs_buildah = pytest.mark.skipif(REASON is not None, reason=str(REASON))


class Buildah:
    """buildah with a storage of its own, deleted afterwards."""

    def __init__(self, storage: Path) -> None:
        self.command = ["buildah", "--root", f"{storage}/root", "--runroot", f"{storage}/run", "--storage-driver=vfs"]
        self.environ = os.environ | {"BUILDAH_ISOLATION": "chroot"}

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self.command, *arguments], env=self.environ, cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"buildah {' '.join(arguments)}:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        return done.stdout.strip()


def debian_mirror() -> tuple[str, str]:
    """Address and release of this machine's main Debian archive."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Component: main"],
        capture_output=True,
        text=True,
        check=True,
    )
    release = re.search(r'VERSION_CODENAME="?(\w+)', Path("/etc/os-release").read_text())
    assert release is not None
    for line in listed.stdout.splitlines():
        address, name = line.split()
        if name == release[1]:
            return address, name
    pytest.skip(f"apt has no archive of {release[1]} configured")


def pip_volumes(directory: Path) -> list[str]:
    """Volumes through which pip in the build finds what it finds here: its settings, certificates, folders, cache."""
    pip = [sys.executable, "-m", "pip"]
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=True).stdout
    settings: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed, flags=re.MULTILINE):
        settings.setdefault(name, []).extend(value.split())
    text = "".join(f"{name} = {' '.join(dict.fromkeys(values))}\n" for name, values in settings.items())
    mounted = set()
    for scheme, place in sorted(set(re.findall(r"(?<!\S)(file://)?(/\S+)", text)), key=str, reverse=True):
        if Path(place).exists():
            # Elsewhere than here, so that no file of the image is covered.
            text = re.sub(rf"(?<!\S){re.escape(scheme + place)}(?!\S)", f"{scheme}/host{place}", text)
            mounted.add(str(Path(place).parent) if scheme else place)  # an index links to files beside its folder
    volumes = [f"{Path(place).resolve()}:/host{place}:ro" for place in sorted(mounted)]
    (directory / "pip.conf").write_text(f"[global]\n{text}")
    volumes.append(f"{directory}/pip.conf:/etc/pip.conf:ro")
    cache = subprocess.run([*pip, "cache", "dir"], capture_output=True, text=True, check=False).stdout.strip()
    if cache and Path(cache).is_dir():
        volumes.append(f"{cache}:/root/.cache/pip")
    return [f"--volume={volume}" for volume in volumes]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Buildah, str]]:
    """buildah and the name of a container of the image."""
    directory = tmp_path_factory.mktemp("image")
    buildah = Buildah(directory / "storage")
    try:
        base = buildah("from", "scratch")
        address, release = debian_mirror()
        root = buildah("mount", base)
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", release, root, address], capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]
        # As in the official Debian images: no fsync for every file that dpkg unpacks.
        (Path(root) / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
        buildah("umount", base)
        buildah("commit", "--quiet", "--rm", base, "localhost/base")
        buildah(
            "build",
            "--file=docker/Dockerfile",
            "--tag=localhost/pretrain",
            "--build-arg=BASE_IMAGE=localhost/base",
            "--build-arg=PIP_OPTIONS=",
            "--pull-never",
            *pip_volumes(directory),
            ".",
        )
        yield buildah, buildah("from", "--pull-never", "localhost/pretrain")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@needs_buildah
def test_the_image_runs_the_command_as_a_user_without_rights(image: tuple[Buildah, str]) -> None:
    buildah, container = image
    facts = json.loads(buildah("inspect", "--type=image", "localhost/pretrain"))["OCIv1"]["config"]
    assert facts["Entrypoint"] == ["pretrain"]
    assert facts["User"] == "pretrain"
    assert facts["WorkingDir"] == "/workspace"
    assert buildah("run", container, "--", "pretrain", "--help").startswith("usage: pretrain")
    assert buildah("run", container, "--", "id", "--user") == "10001"
    assert buildah("run", container, "--", "sh", "-c", "touch made; ls") == "made"


@needs_buildah
def test_the_image_has_the_tested_versions_and_only_the_code(image: tuple[Buildah, str]) -> None:
    buildah, container = image
    pinned = dict(
        line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line
    )
    lines = buildah("run", container, "--", "pip", "list", "--format=freeze").splitlines()
    installed = {name: version.split("+")[0] for name, version in (line.split("==") for line in lines)}
    assert {"torch", "transformers", "lightning", "deepspeed"} <= installed.keys()
    assert {name: pinned[name] for name in installed if name in pinned} == {
        name: version for name, version in installed.items() if name in pinned
    }
    files = set(buildah("run", container, "--", "ls", "--almost-all", "/opt/pretrain").split())
    assert files.isdisjoint({".git", ".venv", "tests", "runs", "corpora"})
    config = "/opt/pretrain/configs/bert_base.yaml"
    assert buildah("run", container, "--", "pretrain", "config", "check", config) == f"{config}: ok"
