"""What a kind of lab has to be able to do; the rest of the lab is the same for every kind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from orchestrator.lab.record import Lab, LabHost
from orchestrator.lab.spec import LabSpec, Progress

__all__ = ["Provider"]


class Provider(Protocol):
    """Makes, starts and removes hosts. Every method may be called again after it was interrupted."""

    limits: str
    """What its hosts cannot do, in one line."""

    def require(self, folder: Path) -> None:
        """Raises LabError when this machine cannot run such a lab in that folder."""
        ...

    def fit(self, folder: Path, spec: LabSpec, lab: Lab | None, waiting: int) -> None:
        """Raises LabError, with the numbers, when there is no room for the hosts that do not run yet."""
        ...

    def shaped(self, lab: Lab, spec: LabSpec) -> Lab:
        """The lab as it will be with what was asked for."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """Held around `connect`, `settled` and `clean`: nobody else changes what labs share on this machine."""
        ...

    def image(self, system: str, spec: LabSpec, progress: Progress) -> str:
        """The key of the system's image, which is made when it is missing."""
        ...

    def connect(self, lab: Lab, progress: Progress) -> None:
        """Makes the network that the hosts are in."""
        ...

    def create(self, lab: Lab, host: LabHost, folder: Path) -> None:
        """Makes a host's files from its image in an empty folder, which is renamed to the host's own afterwards."""
        ...

    def settled(self, lab: Lab, host: LabHost) -> LabHost:
        """A stopped host with what it needs of this machine to start."""
        ...

    def start(self, lab: Lab, host: LabHost) -> None:
        """Starts a host that is stopped; does not wait for it."""
        ...

    def started_at_s(self, lab: Lab, host: LabHost) -> float | None:
        """When the host was started, in seconds since the epoch; None when it is stopped."""
        ...

    def patience_s(self, lab: Lab) -> float:
        """How long a host may take from its start until it answers."""
        ...

    def stop(self, lab: Lab, hosts: Sequence[LabHost], *, grace_s: float) -> None:
        """Shuts hosts down together, and ends by force what still runs after the time of grace."""
        ...

    def traces(self, lab: Lab) -> tuple[str, ...]:
        """What there is outside the lab's folder, in words."""
        ...

    def clean(self, lab: Lab) -> None:
        """Removes all that there is outside the lab's folder, once every host is stopped."""
        ...

    def harvest(self, lab: Lab) -> int:
        """Keeps what the hosts downloaded for the next lab; the number of packages that are new."""
        ...
