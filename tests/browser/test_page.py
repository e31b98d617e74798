"""The page in a real browser: complete, quiet, inert whatever hosts say, and readable with 200 of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from fleets import HOSTILE, hostile, mixed
from playwright.sync_api import Page, expect

from orchestrator.model.finding import FleetFinding
from orchestrator.model.run import HostResult
from orchestrator.report import html

Visit = Callable[..., Page]


def rendered(results: Sequence[HostResult]) -> str:
    return html.render(results, command="validate", ended_s=1.8e9)


@pytest.fixture(scope="module")
def fleet() -> str:
    """The page of 200 hosts."""
    return rendered(mixed(200))


@pytest.fixture(scope="module")
def some() -> str:
    """The page of as many as it takes to have every fault."""
    return rendered(mixed(48))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go: KVMFLEET_SCREENSHOTS, to be looked at, or nowhere that lasts."""
    folder = Path(os.environ.get("KVMFLEET_SCREENSHOTS", tmp_path / "pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_every_host_is_in_every_part_of_the_page(visit: Visit, fleet: str) -> None:
    page = visit(fleet)
    assert page.locator(".fleet tbody tr").count() == 200
    assert page.locator(".matrix tbody tr").count() == 200
    assert page.locator("details.host").count() == 200
    assert page.title() == "kvmfleet validate: 200 hosts"


def test_the_worst_hosts_come_first(visit: Visit, some: str) -> None:
    order = ["failed", "unknown", "unreachable", "degraded", "proven"]
    verdicts = visit(some).locator(".fleet tbody tr").evaluate_all("rows => rows.map(row => row.dataset.verdict)")
    assert verdicts == sorted(verdicts, key=order.index)
    assert set(verdicts) == set(order)


def test_a_cell_is_told_by_its_letter_and_not_only_by_its_colour(visit: Visit, some: str) -> None:
    cells = visit(some).locator(".matrix tbody td")
    pairs = set(cells.evaluate_all("cells => cells.map(cell => cell.className + ' ' + cell.textContent)"))
    assert pairs == {"pass p", "skip s", "fail F", "error E", "warn W", "waived V", " ·"}


@pytest.mark.parametrize("size", [(1400, 900), (420, 900)], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_follows_the_scheme(
    visit: Visit, fleet: str, pictures: Path, scheme: str, size: tuple[int, int]
) -> None:
    page = visit(fleet, viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]  # tables scroll in themselves
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    for part in ("hosts", "checks", "details"):
        page.locator(f"#{part}").scroll_into_view_if_needed()
        page.evaluate(f"document.getElementById('{part}').scrollIntoView()")
        file = pictures / f"{part}-{scheme}-{size[0]}.png"
        page.screenshot(path=file)
        assert file.stat().st_size > 10_000


def test_a_narrow_window_cuts_no_sentence_above_the_matrix(visit: Visit, some: str) -> None:
    page = visit(some, viewport={"width": 400, "height": 900})
    frame, sentence = page.locator(".matrix").bounding_box(), page.locator(".matrix caption").bounding_box()
    assert frame is not None
    assert sentence is not None
    assert sentence["width"] <= frame["width"]


def test_the_names_of_checks_and_hosts_stay_in_view_while_the_matrix_scrolls(visit: Visit, fleet: str) -> None:
    page = visit(fleet, viewport={"width": 900, "height": 600})
    matrix = page.locator(".matrix")
    matrix.evaluate("box => box.scrollTo(200, 1500)")
    frame = matrix.bounding_box()
    assert frame is not None
    check = page.locator(".matrix thead th").nth(20).bounding_box()
    host = page.locator(".matrix tbody th").nth(100).bounding_box()
    assert check is not None
    assert host is not None
    assert check["y"] >= frame["y"]
    assert abs(host["x"] - frame["x"]) <= 2


@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
def test_what_a_host_says_is_text_and_nothing_else(visit: Visit, script: bool) -> None:
    page = visit(rendered(hostile()), java_script_enabled=script)
    assert page.title() == "kvmfleet validate: 2 hosts"
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    shown = page.locator(".fleet tbody th").first.inner_text()
    assert shown == HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")


def test_no_byte_of_a_host_makes_a_page_that_cannot_be_written(visit: Visit) -> None:
    (result, *_) = hostile()
    odd = [msgspec.structs.replace(result, host=name) for name in ("\udcff", "\x00", "&#60;b&#62;", "x" * 253, "")]
    page = visit(rendered(odd))
    names = page.locator(".fleet tbody th").all_inner_texts()
    assert names == ["\\udcff", "\\x00", "&#60;b&#62;", "x" * 253, ""]
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_a_script_that_slipped_in_would_not_run(visit: Visit, complaints: list[str]) -> None:
    """The policy is the second line of defence: it holds even where escaping would not."""
    text = rendered(hostile()).replace("</main>", "<b id=x>no</b><script>x.textContent = 'ran'</script></main>")
    page = visit(text.replace("<body>", "<body onload=\"x.textContent = 'ran'\">"))
    assert page.locator("#x").inner_text() == "no"
    assert [text for text in complaints if "Content Security Policy" not in text] == []
    assert len(complaints) == 2
    complaints.clear()


def test_the_page_is_complete_without_a_script(visit: Visit, some: str) -> None:
    page = visit(some, java_script_enabled=False)
    assert page.locator("#filter").is_hidden()
    assert page.locator(".fleet tbody tr").last.is_visible()
    host = page.locator("details.host").first
    host.locator("summary").first.click()
    assert host.locator("table.findings").is_visible()
    assert host.locator("dl").is_visible()


def test_a_letter_of_the_matrix_leads_to_its_finding(visit: Visit, some: str) -> None:
    page = visit(some)
    page.locator(".matrix td.fail a").first.click()
    target = page.locator("tr:target")
    expect(target).to_be_visible()
    assert target.locator("td, th").all_inner_texts()[:2] == ["fail", "kvm.node"]


def test_hosts_are_found_by_words(visit: Visit, some: str) -> None:
    page = visit(some)
    wanted = {"hv004": 1, "kvm.node": 1, "KVM.node  rack4.example": 1, "nothing-like-it": 0, "": 48}
    for typed, left in wanted.items():
        page.get_by_role("searchbox").fill(typed)
        for part in (".fleet tbody tr", ".matrix tbody tr", "details.host"):
            assert page.locator(f"{part}:visible").count() == left, typed
        assert page.locator("output").inner_text() == ("" if left == 48 else f"{left} of 48 hosts")


def test_verdicts_and_checks_without_problems_can_be_left_out(visit: Visit, some: str) -> None:
    page = visit(some)
    page.get_by_label("proven").uncheck()
    assert page.locator(".fleet tbody tr[data-verdict=proven]:visible").count() == 0
    assert page.locator(".fleet tbody tr:visible").count() > 0
    before = page.locator(".matrix thead tr:first-child th:visible").count()
    page.get_by_label("only checks with problems").check()
    kept = page.locator(".matrix thead tr:first-child th:visible").all_inner_texts()
    assert 1 < len(kept) < before
    assert "kvm.node" in kept
    assert "cpu.arch" not in kept


def test_tables_are_described_to_those_who_do_not_see_them(visit: Visit, some: str) -> None:
    page = visit(some)
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("html").get_attribute("lang") == "en"
    table = page.get_by_role("table", name="Each host with its root cause")
    assert table.get_by_role("rowheader").count() == 48
    ids = page.locator("[id]").evaluate_all("all => all.map(one => one.id)")
    assert len(ids) == len(set(ids))


def test_what_is_wrong_among_the_hosts_is_told_and_is_text(visit: Visit) -> None:
    among = [
        FleetFinding("fleet.identity", "fail", HOSTILE, fix=HOSTILE, hosts=(HOSTILE, "hv1")),
        FleetFinding("fleet.cpu", "pass", "all alike"),
    ]
    page = visit(html.render(hostile(), among, command="validate", ended_s=1.8e9))
    assert page.locator("#fleet tbody tr").count() == 1
    assert page.locator("#fleet tbody th").inner_text() == "fleet.identity"
    assert page.locator("img").count() == 0


def test_a_replay_says_so_at_the_top(visit: Visit) -> None:
    (result,) = mixed(1)
    recorded = msgspec.structs.replace(result.collected, recorded_at_s=1.7e9)
    page = visit(rendered([msgspec.structs.replace(result, collected=recorded)]))
    assert "Replay of evidence that was recorded at 2023-11-14" in page.locator(".replay").inner_text()


def test_a_page_without_hosts_is_a_page(visit: Visit) -> None:
    assert visit(rendered(())).title() == "kvmfleet validate: 0 hosts"
