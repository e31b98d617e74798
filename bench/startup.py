"""How long a user waits for a word: `./kvmfleet --help` against `ansible --version`.

.venv/bin/python bench/startup.py [ROUNDS]
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from measure import BIN, KVMFLEET, by_turns, heading, median_cpu_s, median_wall_s, run, table

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
commands: dict[str, tuple[str | Path, ...]] = {
    "`ansible --version`": (BIN / "ansible", "--version"),
    "`./kvmfleet --help`": (KVMFLEET, "--help"),
    "the same without the launcher": (BIN / "python", "-P", "-m", "orchestrator", "--help"),
    "`python -c pass`": (BIN / "python", "-c", "pass"),
}
heading("Start-up", rounds)
runs = by_turns({name: partial(run, *command) for name, command in commands.items()}, rounds)
base_s = median_wall_s(runs["`ansible --version`"])
table(
    ("command", "wall", "processor", "wall against ansible --version"),
    (
        (
            name,
            f"{median_wall_s(r) * 1e3:.0f} ms",
            f"{median_cpu_s(r) * 1e3:.0f} ms",
            f"{median_wall_s(r) / base_s:.2f}",
        )
        for name, r in runs.items()
    ),
)
