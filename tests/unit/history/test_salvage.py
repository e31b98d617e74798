"""Histories that are damaged, and files that are none."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from learned import result

from orchestrator.errors import StoreError
from orchestrator.history import address, database, salvage
from orchestrator.history.store import Store


def overwritten(content: bytes, start: int, length: int) -> bytes:
    return content[:start] + random.Random(1).randbytes(length) + content[start + length :]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A history of some pages."""
    file = tmp_path_factory.mktemp("good") / "history.sqlite3"
    with Store(f"sqlite:///{file}") as store:
        run = store.begin("provision")
        for n in range(60):
            run.record(result(f"hv{n}"), baseline=True)
    return file.read_bytes()


@pytest.fixture
def filled(good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same where kvmfleet keeps its own."""
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path))
    (tmp_path / "history.sqlite3").write_bytes(good)
    return tmp_path / "history.sqlite3"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"these are somebody's notes\n" * 100,
        lambda content: random.Random(1).randbytes(len(content)),
        lambda content: content[: len(content) // 2],
        lambda content: content[:50],
        lambda content: overwritten(content, 0, 4096),
        lambda content: overwritten(content, 4096, len(content) - 4096),
    ],
    ids=["empty", "text", "random", "truncated", "a few bytes", "first page", "all but the first page"],
)
def test_a_damaged_history_is_moved_aside_whole_and_a_new_one_begins(filled: Path, damage: Any) -> None:
    bad = damage(filled.read_bytes())
    filled.write_bytes(bad)
    filled.with_name("history.sqlite3-wal").write_bytes(b"")
    with Store() as store:
        (note,) = store.notes
        aside = store.lost()
        assert aside
        assert aside.read_bytes() == bad
        assert (str(filled) in note.message, aside.name in note.message) == (True, True)
        assert (".recover" in note.hint, "provision" in note.hint) == (True, True)
        assert store.runs() == ()
        store.begin("validate")
    with Store() as store:
        assert store.notes == ()
        assert len(store.runs()) == 1


def test_damage_in_the_data_is_found_when_it_is_read_and_the_next_run_starts_anew(filled: Path) -> None:
    pages = filled.stat().st_size // 4096
    filled.write_bytes(overwritten(filled.read_bytes(), 4096 * (pages - pages // 3), 4096 * (pages // 3)))
    with Store() as store:
        assert store.notes == ()
        with pytest.raises(StoreError, match="moved aside") as caught:
            [store.last(f"hv{n}") for n in range(60)]
        assert ".recover" in caught.value.hint
        for again in (store.runs, lambda: store.begin("validate")):
            with pytest.raises(StoreError) as repeated:
                again()
            assert str(repeated.value) == str(caught.value)
        assert not filled.exists(), "it would have no tables, and not be for its owner alone"
    with Store() as store:
        assert store.lost()
        assert store.runs() == ()


def test_a_file_elsewhere_that_is_no_history_is_named_and_left_alone(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("not a database, but somebody's notes\n" * 100)
    with pytest.raises(StoreError, match="not a database") as caught:
        Store(f"sqlite:///{file}")
    assert str(file) in caught.value.message
    assert file.read_text().startswith("not a database, but")
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("beside", ["", "-wal", "-shm"])
def test_an_empty_file_that_somebody_made_becomes_a_history_unless_it_has_been_one(
    file: Path, beside: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.mkdir()
    file.touch()
    if beside:
        file.with_name(file.name + beside).touch()
    with Store(f"sqlite:///{file}") as store:
        assert [note.message.partition(": ")[2][:17] for note in store.notes] == ["the file is empty"] * bool(beside)
        store.begin("validate")
    assert bool(list(file.parent.glob("*.damaged-*"))) == bool(beside)
    assert ("the file is empty, so it is taken for a new one" in caplog.text) == (not beside)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_regular_file_is_named_and_left_alone(file: Path, make: Callable[[Path], None]) -> None:
    file.parent.mkdir()
    make(file)
    with pytest.raises(StoreError, match="no regular file"):
        Store(f"sqlite:///{file}")
    with pytest.raises(StoreError, match="no regular file"):
        database.measure(address.chosen(f"sqlite:///{file}"))
    assert salvage.damage(file) == ""
    assert [path.name for path in file.parent.iterdir()] == [file.name]
