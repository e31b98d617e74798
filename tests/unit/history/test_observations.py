"""What drift checks saw, and since when."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from histories import execute
from learned import GONE, SWAP, result, seen

from orchestrator.history.store import Store
from orchestrator.model.drift import Drift, HostDrift
from orchestrator.notify.notices import Notices


def test_since_when_is_when_it_was_first_seen_so(store: Store) -> None:
    first = store.begin("drift").watch(seen(SWAP), {"a": "b"})
    again = store.begin("drift").watch(seen(SWAP, GONE), {"a": "b"})
    assert (again.since_s, again.items[0].since_s) == (first.since_s, first.items[0].since_s)
    assert again.items[1].since_s > first.items[0].since_s
    other = store.begin("drift").watch(seen(Drift(SWAP.item, "10", "99")), None)
    assert other.items[0].since_s > again.items[0].since_s, "another value is another drift"
    healed = store.begin("drift").watch(seen(state="in-sync"), None)
    assert healed.since_s > first.since_s
    assert store.watched("hv1") == healed
    assert [watch.state for watch in store.watches("hv1")] == ["in-sync", "drifted", "drifted", "drifted"]
    assert store.watched("hv2") is None


def test_checks_in_a_row_that_see_the_same_are_one_row(store: Store, url: str) -> None:
    def check(found: HostDrift, items: dict[str, str] | None, times: int = 3) -> HostDrift:
        for _ in range(times):
            last = store.begin("drift").watch(found, items)
        return last

    check(seen(state="in-sync"), {"a": "1"})
    check(seen(state="in-sync"), {"a": "2"})
    check(HostDrift("hv1", "unreachable", problem="refused"), None)
    check(HostDrift("hv1", "unreachable", problem="late"), None)
    silent = HostDrift("hv1", "unreachable")
    assert Notices(store.engine).silent_checks([silent], 5) == {"hv1": 5}
    assert Notices(store.engine).silent_checks([silent], 9) == {"hv1": 6}
    check(seen(SWAP), {"a": "2"})
    both = check(seen(SWAP, GONE), {"a": "2"})
    store.begin("provision").record(msgspec.structs.replace(result(), left=(SWAP, GONE)), baseline=True)
    assert check(seen(SWAP, GONE), {"a": "2"}).items == both.items, "never healed"
    store.begin("provision").record(msgspec.structs.replace(result(), left=(SWAP,)), baseline=True)
    assert check(seen(SWAP, GONE), {"a": "2"}).items != both.items, "healed, and broken again"
    assert execute(url, "SELECT checks FROM watches ORDER BY id") == [(n,) for n in (3, 3, 3, 3, 3, 6, 3)]
    assert execute(url, "SELECT count(*) FROM drifts") == [(1 + 2 + 2,)]
    last = store.runs(1)[0].id
    assert execute(url, "SELECT max(run_id), max(seen_s) FROM watches") == [(last, store.watches("hv1")[0].seen_s)]


def test_equal_snapshots_are_kept_once(store: Store, url: str) -> None:
    for number in range(3):
        store.begin("drift").watch(seen(host=f"hv{number}"), {"b": "2", "a": "1"})
    store.begin("drift").watch(seen(), {"a": "1", "b": "3"})
    assert execute(url, "SELECT count(*) FROM snapshots") == [(2,)]


def test_a_host_that_went_silent_keeps_the_time_at_which_it_could_last_be_told(store: Store) -> None:
    assert store.begin("drift").watch(HostDrift("hv1", "unreachable"), None).told_s is None
    told = store.begin("drift").watch(HostDrift("hv1", "pending"), {})
    assert told.told_s == told.seen_s
    store.begin("drift").watch(HostDrift("hv2", "in-sync"), {})
    for state in ("unknown", "unreachable", "never-provisioned"):
        assert store.begin("drift").watch(HostDrift("hv1", state), None).told_s == told.seen_s  # type: ignore[arg-type]


def test_drift_keeps_its_time_across_checks_that_could_not_tell(store: Store) -> None:
    (first,) = store.begin("drift").watch(seen(SWAP), {}).items
    for state in ("unreachable", "unknown"):
        store.begin("drift").watch(HostDrift("hv1", state), None)  # type: ignore[arg-type]
    assert store.begin("drift").watch(seen(SWAP), {}).items == (first,)
    store.begin("drift").watch(HostDrift("hv1", "in-sync"), {})
    assert store.begin("drift").watch(seen(SWAP), {}).items[0].since_s > first.since_s


def test_drift_that_comes_back_after_a_provision_has_healed_it_is_new(store: Store) -> None:
    first = store.begin("drift").watch(seen(SWAP, GONE), {})
    left = msgspec.structs.replace(result(), left=(GONE,))
    store.begin("provision").record(left, baseline=True)
    again = store.begin("drift").watch(seen(SWAP, GONE), {})
    assert again.items[0].since_s > first.since_s, "healed, and broken again"
    assert (again.items[1].since_s, again.since_s) == (first.since_s, first.since_s), "never healed"
    store.begin("provision").record(result(), baseline=True)
    assert store.begin("drift").watch(seen(SWAP, GONE), {}).since_s > again.seen_s


def test_a_clock_that_was_ahead_at_a_provision_hides_no_drift_that_was_seen_later(store: Store, url: str) -> None:
    store.begin("provision").record(result(), baseline=True)
    execute(url, f"UPDATE host_results SET recorded_at_s = {time.time() + 1_000_000}")
    first = store.begin("drift").watch(seen(GONE, SWAP), {})
    assert store.begin("drift").watch(seen(GONE, SWAP), {}).items == first.items, "since the same time"
    watched = store.watched("hv1")
    assert watched
    assert watched.items == first.items, "there to be accepted"


def test_a_clock_that_was_ahead_at_a_check_brings_back_no_drift_that_was_healed(store: Store, url: str) -> None:
    store.begin("drift").watch(seen(SWAP, GONE), {})
    execute(url, f"UPDATE watches SET seen_s = {time.time() + 1_000_000}")
    store.begin("provision").record(msgspec.structs.replace(result(), left=(GONE,)), baseline=True)
    watched = store.watched("hv1")
    assert watched
    assert [item.item for item in watched.items] == [GONE.item]


def test_what_a_provision_has_healed_is_there_no_more_to_be_accepted(store: Store) -> None:
    store.begin("drift").watch(seen(SWAP, GONE), {})
    store.begin("provision").record(msgspec.structs.replace(result(), left=(GONE,)), baseline=True)
    watched = store.watched("hv1")
    assert watched
    assert [item.item for item in watched.items] == [GONE.item]


def test_drift_keeps_its_time_across_a_check_that_could_not_look_at_it(store: Store) -> None:
    first, gone = store.begin("drift").watch(seen(SWAP, GONE), {"package:ovmf": "1", SWAP.item: "60"}).items
    for _ in range(2):
        half = msgspec.structs.replace(seen(GONE), problem="tuning: late")
        store.begin("drift").watch(half, {"package:ovmf": "1"})
    assert store.begin("drift").watch(seen(SWAP, GONE), {}).items == (first, gone)
    half = msgspec.structs.replace(seen(SWAP), problem="files: late")
    store.begin("drift").watch(half, {"package:ovmf": "1", "package:swtpm": "0.7", SWAP.item: "60"})
    again = store.begin("drift").watch(seen(SWAP, GONE), {}).items
    assert again[0] == first
    assert again[1].since_s > gone.since_s, "healed meanwhile"


def steps(store: Store, work: Callable[[], object]) -> int:
    """Of SQLite's machine, which is what it had to look at."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    with store.engine.connect() as connection:  # the pool has it again afterwards
        file: Any = connection.connection.driver_connection
        file.set_progress_handler(step, 1)
    work()
    file.set_progress_handler(None, 1)
    return count


@pytest.mark.parametrize("found", [seen(SWAP), HostDrift("hv1", "unreachable"), seen(state="in-sync")])
def test_a_check_costs_the_same_however_many_there_were(file: Path, found: HostDrift) -> None:
    with Store(f"sqlite:///{file}") as store:
        store.begin("provision").record(result(), baseline=True)
        store.begin("drift").watch(seen(state="in-sync"), {})

        def check() -> None:
            run = store.begin("drift")
            assert store.expectation("hv1")
            run.watch(found, {} if found.state != "unreachable" else None)
            assert store.watched("hv1")

        check()
        first = steps(store, check)
        for _ in range(100):
            check()
        last = steps(store, check)
    assert first
    assert last < 1.1 * first
