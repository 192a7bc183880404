"""Lightning's view of the launcher: our rank facts, the same class under torchrun, srun and alone."""

from __future__ import annotations

import socket

from lightning.fabric.plugins.environments import ClusterEnvironment

from pipeline.base.ranks import RankFacts


class RankEnvironment(ClusterEnvironment):
    """Processes were started by the launcher; Lightning must start none and requeue nothing.

    One class for all launchers also keeps Lightning's SLURM auto-requeue away, which saves inside a signal handler
    (Lightning-AI/pytorch-lightning#21406); we save at the step boundary instead (`faults.py`).
    """

    def __init__(self, facts: RankFacts) -> None:
        super().__init__()
        self.facts = facts
        self._port = facts.main_port or _free_port()

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.facts.main_address

    @property
    def main_port(self) -> int:
        return self._port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.facts.world_size

    def set_world_size(self, size: int) -> None:
        """Lightning counts its own devices here; the launcher knows better."""

    def global_rank(self) -> int:
        return self.facts.rank

    def set_global_rank(self, rank: int) -> None:
        """As :meth:`set_world_size`."""

    def local_rank(self) -> int:
        return self.facts.local_rank

    def node_rank(self) -> int:
        return self.facts.node_rank


def _free_port() -> int:
    """A port for a world of one rank, which no launcher named."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
