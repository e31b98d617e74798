"""The errors that a user can meet, each with its exit code.

    KvmfleetError                 exit 1: we could not get an answer
      UsageError                  the command line makes no sense
      InventoryError              the inventory cannot be read, or nothing in it matches
      WaiverError                 waivers.yml cannot be read or understood
      LockedError                 another run holds the fleet
      ConvergeError               Ansible could not be run at all (a failed playbook is a value, not an error)
      StoreError                  the history cannot be read or written
        DamagedError              ... because its file is damaged
        UnwritableError           ... because there is no room for it, or no right; it may still be read
      ScheduleError               a schedule cannot be installed, asked or run
      NotifyError                 nobody could be told of what changed
      PkiError                    the fleet's CA cannot be made or read
      AssetError                  what a guest boots from cannot be fetched
      LabError                    the lab cannot be made, changed or removed
        MissingPackagesError      ... because system packages are missing
      Interrupted                 exit 130: the user said stop

A host that failed, drifted or stayed silent is never an exception: it is a value, and cli turns it into an exit
code.
"""

from __future__ import annotations

__all__ = [
    "KvmfleetError",
    "UsageError",
    "InventoryError",
    "WaiverError",
    "LockedError",
    "ConvergeError",
    "StoreError",
    "DamagedError",
    "UnwritableError",
    "ScheduleError",
    "NotifyError",
    "PkiError",
    "AssetError",
    "LabError",
    "MissingPackagesError",
    "Interrupted",
]


class KvmfleetError(Exception):
    """What, where and why in `message`; what to do next in `hint`."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(KvmfleetError):
    """The command line makes no sense."""


class InventoryError(KvmfleetError):
    """The inventory cannot be read, or nothing in it matches."""


class WaiverError(KvmfleetError):
    """The waivers cannot be read or understood; the message names the file and the line."""


class LockedError(KvmfleetError):
    """Another run holds the fleet; the message names its process, user, host and start."""


class ConvergeError(KvmfleetError):
    """Ansible could not be run at all."""


class StoreError(KvmfleetError):
    """The history cannot be read or written."""


class DamagedError(StoreError):
    """The file of the history is damaged, or no file of SQLite's at all."""


class UnwritableError(StoreError):
    """The history cannot be written: there is no room for it, or no right. What is in it may still be read."""


class ScheduleError(KvmfleetError):
    """A schedule cannot be installed, asked or run; the message says what systemd said."""


class NotifyError(KvmfleetError):
    """Nobody could be told of what changed; the message names no URL."""


class PkiError(KvmfleetError):
    """The fleet's CA cannot be made or read."""


class AssetError(KvmfleetError):
    """What a guest boots from cannot be fetched, or is not what it should be."""


class LabError(KvmfleetError):
    """The lab cannot be made, changed or removed."""


class MissingPackagesError(LabError):
    """System packages are missing; the hint holds the exact command that installs them."""


class Interrupted(KvmfleetError):
    """The user said stop (SIGINT or SIGTERM); everything that we started has ended."""

    exit_code = 130
