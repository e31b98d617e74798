"""Run a command of the host: C locale, stdin closed, with the folders of the administrator in the path."""

from __future__ import annotations

import shutil
import subprocess

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(argv: list[str], said: str = "", **environment: str) -> tuple[int, str, str]:
    """Exit code, output and complaint. `said` goes to its stdin."""
    done = subprocess.run(
        argv,
        input=said.encode(),
        capture_output=True,
        env={"PATH": PATH, "LC_ALL": "C", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive", **environment},
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def which(name: str) -> str | None:
    """The path of a command."""
    return shutil.which(name, path=PATH)
