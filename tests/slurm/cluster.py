"""A real SLURM on this machine for the length of a test: munged, slurmctld and two slurmd, each a host of its own.

Every node has its own host name, network and hosts file (Linux namespaces on one bridge, no way out), and device files
that stand for GPUs. Needs root and Debian's packages slurmctld, slurmd, slurm-client, munge and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "scontrol",
    "squeue",
    "scancel",
    "ip",
    "nsenter",
    "unshare",
)
NODES = ("n1", "n2")
LOGIN = "login"
GPUS_PER_NODE = 2

CONFIGURATION = """
ClusterName=test
SlurmctldHost=login(10.78.0.1)
SlurmctldPort=16917
AuthInfo=socket={directory}/run/munge.sock,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/run/slurmctld.pid
SlurmdPidFile={directory}/run/slurmd-%n.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
GresTypes=gpu
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=30
MinJobAge=3600
SlurmdTimeout=20
PartitionName=gpu Nodes=ALL Default=YES GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=10
NodeName=n1 NodeAddr=10.78.0.11 Port=16921 CoresPerSocket=16 RealMemory=64000 Gres=gpu:2
NodeName=n2 NodeAddr=10.78.0.12 Port=16922 CoresPerSocket=16 RealMemory=64000 Gres=gpu:2
"""
# cred_expire: a requeued job waits this long; under 5 SLURM silently takes 120.

HOSTS = {"localhost": "127.0.0.1", LOGIN: "10.78.0.1", "n1": "10.78.0.11", "n2": "10.78.0.12"}


def missing_requirement() -> str | None:
    """Why the cluster cannot run here, if it cannot."""
    if os.geteuid() != 0:
        return "a SLURM with nodes of their own networks needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


class Cluster:
    """Two nodes and a login host; a context manager that leaves no process, network or file behind."""

    def __init__(self) -> None:
        # Not below pytest's folder: munged refuses a socket whose folders are closed to other users.
        self.directory = Path(tempfile.mkdtemp(prefix="pretrain-slurm-"))
        self.prefix = f"pretrain{os.getpid()}"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environ = os.environ | {"SLURM_CONF": f"{self.directory}/slurm.conf", "PATH": path}

    def __enter__(self) -> Cluster:
        try:
            self._write_files()
            self._make_networks()
            self._start_daemons()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 5
            for process_id in self._process_ids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, number)
            while self._process_ids() and time.monotonic() < deadline:
                time.sleep(0.1)
        for host in (*NODES, LOGIN):
            subprocess.run(["ip", "netns", "del", f"{self.prefix}-{host}"], capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def on(self, host: str, *command: str, cwd: Path | None = None) -> str:
        """Output of a command run as on ``host``."""
        done = subprocess.run(
            self._command(host, command), env=self.environ, cwd=cwd, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)} on {host}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *arguments: str, cwd: Path) -> int:
        """Submit a job; its number."""
        return int(self.on(LOGIN, "sbatch", "--parsable", *arguments, cwd=cwd))

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ExitCode, ..."""
        words = self.on(LOGIN, "scontrol", "show", "job", str(number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def lose(self, node: str, daemon_only: bool = False) -> None:
        """Kill all that runs on a node, or its slurmd alone; wait until SLURM has noticed."""
        inside = subprocess.run(
            ["ip", "netns", "pids", f"{self.prefix}-{node}"], check=True, capture_output=True, text=True
        )
        for process_id in map(int, inside.stdout.split()):
            name = Path(f"/proc/{process_id}/comm").read_text().strip()
            if not daemon_only or name == "slurmd":
                os.kill(process_id, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while "down" not in self.on(LOGIN, "sinfo", "--noheader", f"--nodes={node}", "--format=%T"):
            assert time.monotonic() < deadline, f"SLURM did not notice that {node} is gone"
            time.sleep(0.5)

    def bring_back(self, node: str) -> None:
        """Have a lost node work again."""
        self._start(*self._command(node, ["slurmd", "-N", node]))
        self.on(LOGIN, "scontrol", "update", f"nodename={node}", "state=resume")

    def _write_files(self) -> None:
        for name in ("dev", "log", "munge", "run", "state", "spool/n1", "spool/n2"):
            (self.directory / name).mkdir(parents=True)
        self.directory.chmod(0o755)
        (self.directory / "munge").chmod(0o700)
        key = self.directory / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        (self.directory / "slurm.conf").write_text(CONFIGURATION.format(directory=self.directory))
        (self.directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # loaded, never used
        (self.directory / "hosts").write_text("".join(f"{address} {name}\n" for name, address in HOSTS.items()))
        for number in range(GPUS_PER_NODE):  # /dev/null by another name: a GPU without a device file is dropped
            os.mknod(self.directory / "dev" / f"nvidia{number}", 0o020666, os.makedev(1, 3))
        (self.directory / "gres.conf").write_text(f"Name=gpu File={self.directory}/dev/nvidia[0-1]\n")

    def _make_networks(self) -> None:
        """A network namespace a host, joined by a bridge in that of the login host."""
        login = f"{self.prefix}-{LOGIN}"
        _ip("netns", "add", login)
        _ip("-n", login, "link", "set", "lo", "up")
        _ip("-n", login, "link", "add", "br0", "type", "bridge")
        _ip("-n", login, "addr", "add", f"{HOSTS[LOGIN]}/24", "dev", "br0")
        _ip("-n", login, "link", "set", "br0", "up")
        for node in NODES:
            name = f"{self.prefix}-{node}"
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", login, "link", "add", f"v-{node}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", login, "link", "set", f"v-{node}", "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"{HOSTS[node]}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")

    def _start_daemons(self) -> None:
        run = self.directory
        munged = f"--key-file={run}/munge/key --seed-file={run}/munge/seed --pid-file={run}/run/munged.pid"
        munged += f" --socket={run}/run/munge.sock --log-file={run}/log/munged.log --num-threads=2"
        self._start("munged", *munged.split())
        self._start(*self._command(LOGIN, ["slurmctld"]))
        for node in NODES:
            self._start(*self._command(node, ["slurmd", "-N", node]))
        deadline = time.monotonic() + 60
        states = ""
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):  # the controller does not answer yet
                states = self.on(LOGIN, "sinfo", "--noheader", "--Node", "--format=%T")
            if set(states.split()) == {"idle"}:  # a line for each node of each partition
                return
            time.sleep(0.2)
        logs = "\n".join(path.read_text()[-2000:] for path in (self.directory / "log").iterdir())
        raise RuntimeError(f"the nodes did not become idle: {states}\n{logs}")

    def _start(self, *command: str) -> None:
        with (self.directory / "log" / "start").open("ab") as log:
            subprocess.run(command, env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)

    def _command(self, host: str, command: Sequence[str]) -> list[str]:
        """``command`` in the network of ``host``, with its host name and hosts file."""
        enter = f'hostname {host}; mount --bind {self.directory}/hosts /etc/hosts; exec "$@"'
        namespaces = ["nsenter", f"--net=/run/netns/{self.prefix}-{host}", "unshare", "-m", "-u", "--propagation=slave"]
        return [*namespaces, "sh", "-c", enter, "on", *command]

    def _process_ids(self) -> list[int]:
        """All that have this cluster's configuration in their environment: daemons, step daemons, jobs' processes."""
        mark = f"SLURM_CONF={self.directory}/slurm.conf".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                    found.append(int(path.parent.name))
        return found


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
