"""Commands of the controller, which do not outlive it."""

import os
import shutil
import subprocess
import sys

import pytest

STARTS = """
import subprocess
from orchestrator.lab.command import bound
with subprocess.Popen(bound(["echo", "worked"])):
    print("started", flush=True)
"""


@pytest.mark.parametrize(("killed", "said"), [(False, "worked\n"), (True, "")])
def test_a_command_does_nothing_when_we_were_killed_before_it_could_ask_for_a_signal(killed, said, tmp_path):
    late = tmp_path / "setpriv"
    late.write_text(f'#!/bin/sh\nread line; exec {shutil.which("setpriv")} "$@"\n')
    late.chmod(0o755)
    path = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(
        [sys.executable, "-c", STARTS], env=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as we:
        assert we.stdout.readline() == "started\n"
        if killed:
            we.kill()
            we.wait()
        assert we.communicate("go on\n")[0] == said
