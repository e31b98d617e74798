"""Who runs us."""

from __future__ import annotations

import getpass
import os

import pytest

from orchestrator import identity


def test_a_user_is_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "olga")
    assert identity.user() == "olga"


@pytest.mark.parametrize("error", [KeyError, OSError])  # the second since Python 3.13
def test_a_user_without_a_name_is_known_by_number(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def getuser() -> str:
        raise error("no such user")

    monkeypatch.setattr(getpass, "getuser", getuser)
    assert identity.user() == f"uid {os.getuid()}"
