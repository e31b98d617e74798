"""What a lab should be: its name, its hosts and the systems that they run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

import msgspec

from orchestrator.errors import LabError

__all__ = [
    "IMAGE",
    "MOST_HOSTS",
    "SYSTEMS",
    "LabSpec",
    "Progress",
    "System",
    "check_name",
    "systems_of",
]

MOST_HOSTS = 100
"""More would want a larger subnet than a /24 and a larger machine than one."""

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?")


class Progress(Protocol):
    """Told what happens. `fraction` is of the step that the message names; None where it cannot be known."""

    def __call__(self, message: str, fraction: float | None = None) -> None: ...


class System(msgspec.Struct, frozen=True):
    """A distribution's release that a host can run."""

    title: str
    suite: str


SYSTEMS: Mapping[str, System] = {
    "debian-12": System("Debian 12", "bookworm"),
    "debian-13": System("Debian 13", "trixie"),
}

DEFAULT_SYSTEMS = ("debian-12", "debian-13")

IMAGE = "image"
"""The system of a host that was made from an image of the user's."""


class LabSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The lab that the user asked for. Empty fields mean: as the lab is, or the default for a new one.

    From `image` on, the fields are about virtual machines only.
    """

    name: str = "lab"
    systems: tuple[str, ...] = ()  # given out in turn when there are more hosts
    hosts: int | None = None
    provider: str = "auto"
    image: str = ""  # a file or an address
    sha256: str = ""
    memory_mib: int | None = None
    cpus: int | None = None
    accelerator: str = ""


def check_name(name: str) -> None:
    """The name becomes a folder, and with a number a host name: `lab-1`."""
    if not _NAME.fullmatch(name):
        raise LabError(
            f"{name!a} cannot be the name of a lab.",
            hint="Use at most 30 lower-case letters, digits and hyphens, with a letter first and no hyphen last.",
        )


def systems_of(spec: LabSpec, existing: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The system of each host, in order, of a lab whose present hosts run `existing`.

    Raises:
        LabError: An unknown system, a senseless number, or a wish that would replace or remove a present host.
    """
    if spec.image and spec.systems:
        raise LabError("An image is a system already.", hint="Leave out --os, or leave out --image.")
    for name in spec.systems:
        if name not in SYSTEMS:
            raise LabError(f"No host can run {name!a}.", hint=f"Choose from {', '.join(SYSTEMS)}.")
    asked = (IMAGE,) if spec.image else spec.systems
    turn = asked or tuple(dict.fromkeys(existing)) or DEFAULT_SYSTEMS
    number = max(len(existing), len(turn)) if spec.hosts is None else spec.hosts
    if not 1 <= number <= MOST_HOSTS:
        raise LabError(f"A lab has 1 to {MOST_HOSTS} hosts, not {number}.")
    wanted = tuple(turn[index % len(turn)] for index in range(number))
    if number < len(existing):
        raise LabError(
            f"Lab {spec.name} has {len(existing)} hosts and up never removes one; {number} were asked for.",
            hint=f"Make it anew: kvmfleet lab down {spec.name}, then lab up.",
        )
    if asked and wanted[: len(existing)] != existing:
        raise LabError(
            f"Lab {spec.name} runs {', '.join(existing)}; {', '.join(asked)} was asked for.",
            hint=f"Give the new lab another name, or make it anew: kvmfleet lab down {spec.name}, then lab up.",
        )
    return existing + wanted[len(existing) :]
