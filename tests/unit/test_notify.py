"""One message when something changes, none when nothing does: against a real receiver on this machine."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from evidence import host as evidence_of
from patience import longer, until
from test_rollout import OPTIONS, SILENT, fleet, world

from orchestrator import rollout
from orchestrator.cli.main import cli
from orchestrator.cli.notify import destinations as named
from orchestrator.errors import KvmfleetError, StoreError, UsageError
from orchestrator.history.store import Store
from orchestrator.model.drift import Drift, HostDrift
from orchestrator.model.run import Message
from orchestrator.notify import destinations, telling
from orchestrator.notify.destinations import Destination
from orchestrator.notify.message import BODY, TITLE, message
from orchestrator.notify.notices import CLAIM_S
from orchestrator.notify.transitions import Notice, Transition, transitions

# apprise looks for a module that Python 3.13 no longer has
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
SECRET = f"hunter2hunter2{os.getpid()}"  # our own: processes of the same tests beside us have theirs
GOOD = {"evidence": evidence_of({})}
OLD = {"evidence": evidence_of({"packages": {"qemu-system-x86": "1:7.1"}})}
OLDER = {"evidence": evidence_of({"packages": {"qemu-system-x86": "1:6.0"}})}
TWO = {"evidence": evidence_of({"packages": {"qemu-system-x86": "1:7.1"}, "members": {"libvirt": []}})}
HALF_BLIND = {"evidence": evidence_of({"errors": {"packages": "late"}, "members": {"libvirt": []}})}
BLIND = {"evidence": evidence_of({"errors": {"packages": "late"}})}
GONE = SILENT


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("KVMFLEET_NOTIFY", raising=False)
    return tmp_path / "state"


class Receiver(ThreadingHTTPServer):
    """Takes messages, or answers as it is told to; None leaves the sender waiting."""

    answer: int | None = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.taken: list[dict[str, str]] = []
        self.asked = 0
        self.over = threading.Event()

    def url(self, path: str = SECRET) -> str:
        """Whose sender bears a machine that stands still for longer than apprise waits for an answer: 4 s."""
        return f"json://user:{SECRET}@127.0.0.1:{self.server_port}/{path}?rto=60"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        if self.server.answer is None:
            while not self.server.over.wait(0.5):  # a word now and then: no limit of silence ends this
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: y\r\n" if self.server.asked else b"X: y\r\n")
            return
        if self.server.answer == 200:
            self.server.taken.append(json.loads(body))
        self.send_response(self.server.answer)
        if self.server.answer == 301:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        """What a redirection makes of a message: nothing that it said is left."""
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a sender that was ended
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


class Post:
    """Keeps what would be sent; `down` are the places that take nothing."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.down: set[str] = set()

    def __call__(self, messages: Sequence[tuple[Destination, Message]]) -> Mapping[Destination, str]:
        self.sent += [(to.place, message) for to, message in messages if to.place not in self.down]
        return {to: "it is down" if to.place in self.down else "" for to, _ in messages}

    def titles(self) -> list[str]:
        """Those since the last call."""
        taken, self.sent = self.sent, []
        return [message.title.removeprefix("kvmfleet: ") for _, message in taken]


HERE = Destination("json://localhost", "here")
THERE = Destination("json://example.org", "there")


@pytest.fixture
def post() -> Post:
    return Post()


def check(
    send: Any, answers: dict[str, Any], *, to: Sequence[Destination] = (HERE,), after: int = 2
) -> tuple[KvmfleetError, ...]:
    """One drift check that tells what it found."""
    seen = rollout.watch(fleet(*answers), OPTIONS, edges=world(answers=answers))
    return telling.tell(seen.hosts, to, after=after, inventory=("hosts.ini",), send=send)


def provisioned(*names: str) -> None:
    rollout.provision(fleet(*names), OPTIONS, edges=world())


def test_a_transition_is_one_message_at_the_receiver_and_a_repeat_is_none(receiver: Receiver) -> None:
    provisioned("h1", "h2")
    to = (Destination(receiver.url(), "there"),)
    for answers in ({"h1": GOOD, "h2": GOOD}, {"h1": OLD, "h2": GOOD}, {"h1": OLD, "h2": GOOD}):
        assert check(destinations.send, answers, to=to) == ()
    (got,) = receiver.taken
    assert got["title"] == "kvmfleet: h1 drifted"
    assert "package:qemu-system-x86: 1:7.2+dfsg-7+deb12u13 → 1:7.1, since 20" in got["message"]
    assert "kvmfleet drift -i hosts.ini --diff --limit h1" in got["message"]
    assert got["type"] == "failure"
    assert check(destinations.send, {"h1": GOOD, "h2": GOOD}, to=to) == ()
    assert [(one["title"], one["type"]) for one in receiver.taken[1:]] == [
        ("kvmfleet: h1 in sync again", "success")
    ]  # fmt: skip


STORY = [  # what h1 answers, one check after the other -> what is told of it
    (GOOD, []),
    (OLD, ["h1 drifted"]),
    (OLD, []),
    (OLDER, ["h1 drifted further"]),
    (TWO, ["h1 drifted further"]),
    (OLD, ["h1 drifted further"]),
    (GONE, []),
    (OLD, []),  # one check without an answer changes nothing
    (GONE, []),
    (BLIND, ["h1 unknown"]),  # to whoever waits, it is the same silence
    (GONE, []),
    (OLD, ["h1 drifted"]),
    (GOOD, ["h1 in sync again"]),
    (GOOD, []),
    (GONE, []),
    (GOOD, []),
    (GONE, []),
    (GONE, ["h1 unreachable"]),
    (GONE, []),
    (GOOD, ["h1 in sync again"]),
    (GOOD, []),
]


def test_every_transition_is_told_once(post: Post) -> None:
    provisioned("h1")
    for number, (answer, told) in enumerate(STORY):
        assert check(post, {"h1": answer}) == ()
        assert post.titles() == told, f"check {number}"


def test_what_could_not_be_looked_at_has_neither_healed_nor_come_back(post: Post) -> None:
    provisioned("h1")
    check(post, {"h1": TWO})
    assert post.titles() == ["h1 drifted"]
    for answer in (HALF_BLIND, TWO, HALF_BLIND):
        check(post, {"h1": answer})
    assert post.titles() == []


def test_a_host_that_was_never_provisioned_is_told_like_one_that_does_not_answer(post: Post) -> None:
    for told in ([], ["h1 never-provisioned"], []):
        check(post, {"h1": GOOD})
        assert post.titles() == told
    provisioned("h1")
    check(post, {"h1": GOOD})
    assert post.titles() == ["h1 in sync again"]


def test_more_patience_waits_longer_and_none_does_not_wait(post: Post) -> None:
    provisioned("h1", "h2")
    for told in ([], [], ["h1 unreachable"]):
        check(post, {"h1": GONE}, after=3)
        assert post.titles() == told
    check(post, {"h2": GONE}, after=1)
    assert post.titles() == ["h2 unreachable"]


def test_hosts_that_were_not_looked_at_are_not_told_of(post: Post) -> None:
    provisioned("h1", "h2")
    check(post, {"h1": OLD, "h2": OLD})
    assert post.titles() == ["2 drifted"]
    check(post, {"h2": GOOD})
    check(post, {"h1": OLD, "h2": GOOD})
    assert post.titles() == ["h2 in sync again"]


def test_a_check_that_tells_nobody_takes_nothing_away_from_the_next(post: Post) -> None:
    provisioned("h1")
    check(post, {"h1": OLD}, to=())
    check(post, {"h1": OLD})
    assert post.titles() == ["h1 drifted"]


def test_what_was_not_sent_is_sent_by_the_next_check_and_once(post: Post) -> None:
    provisioned("h1")
    post.down = {"here"}
    (problem,) = check(post, {"h1": OLD})
    assert problem.message == "the notification to here was not sent: it is down."
    assert problem.hint.endswith("kvmfleet notify test")
    check(post, {"h1": OLD})
    post.down = set()
    for told in (["h1 drifted"], []):
        assert check(post, {"h1": OLD}) == ()
        assert post.titles() == told
    post.down = {"here"}
    check(post, {"h1": GOOD})
    post.down = set()
    for told in (["h1 in sync again"], []):
        check(post, {"h1": GOOD})
        assert post.titles() == told


def test_what_came_and_went_while_nothing_could_be_sent_is_told(post: Post) -> None:
    provisioned("h1")
    post.down = {"here"}
    check(post, {"h1": OLD})
    post.down = set()
    check(post, {"h1": GOOD})
    ((_, told),) = post.sent
    assert told.title == "kvmfleet: h1 in sync again"
    assert "was drifted, which could not be sent" in told.body


def test_a_destination_that_is_down_costs_the_others_nothing(post: Post) -> None:
    provisioned("h1")
    post.down = {"there"}
    for _ in range(3):
        check(post, {"h1": OLD}, to=(HERE, THERE))
    assert [place for place, _ in post.sent] == ["here"]
    post.down = set()
    check(post, {"h1": OLD}, to=(HERE, THERE))
    assert [place for place, _ in post.sent] == ["here", "there"]


def test_a_run_that_dies_while_it_sends_leaves_it_to_the_next_one(post: Post, state: Path) -> None:
    provisioned("h1")

    def dies(_: object) -> dict[Destination, str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(dies, {"h1": OLD})
    check(post, {"h1": OLD})
    assert post.titles() == [], "it could still be on its way"
    with sqlite3.connect(state / "history.sqlite3") as history:
        history.execute("update notices set claimed_s = claimed_s - ?", (CLAIM_S,))
    history.close()
    for told in (["h1 drifted"], []):
        check(post, {"h1": OLD})
        assert post.titles() == told


def test_two_controllers_on_one_history_tell_it_once(post: Post) -> None:
    provisioned("h1", "h2")

    def meanwhile(messages: Sequence[tuple[Destination, Message]]) -> Mapping[Destination, str]:
        check(post, {"h1": OLD, "h2": OLD})  # the other one, which has seen something more
        return post(messages)

    check(meanwhile, {"h1": OLD, "h2": GOOD})
    assert post.titles() == ["h2 drifted", "h1 drifted"]
    check(post, {"h1": OLD, "h2": OLD})
    assert post.titles() == []


def test_a_history_that_cannot_be_written_is_a_problem_and_no_exception(post: Post) -> None:
    def full() -> Store:
        raise StoreError("history: no space left", hint="Free some.")

    (problem,) = telling.tell([HostDrift("h1", "drifted")], (HERE,), after=2, store=full, send=post)
    assert problem.message.endswith("history: no space left")
    assert post.sent == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (500, "the service answered 500"),
        (301, "the service answered 301"),
        (None, "not done after "),
        (0, "no connection"),
    ],
)
def test_a_receiver_in_trouble_is_named_without_its_secrets_and_gets_the_message_afterwards(
    receiver: Receiver, answer: int | None, reason: str
) -> None:
    provisioned("h1")
    receiver.answer = answer
    url = "json://127.0.0.1:9/" + SECRET if answer == 0 else receiver.url()
    to = Destination(url, "line 1 of urls")

    def send(messages: Sequence[tuple[Destination, Message]]) -> Mapping[Destination, str]:
        if answer is not None:
            return destinations.send(messages)
        for limit_s in longer(3, lambda: receiver.asked):
            sent = destinations.send(messages, limit_s=limit_s)
        return sent

    (problem,) = check(send, {"h1": OLD}, to=(to,))
    assert reason in problem.message
    assert "line 1 of urls" in problem.message
    assert SECRET not in str(problem) + repr(to)
    if answer != 0:
        assert receiver.asked == 1
    receiver.answer = 200
    for _ in range(2):
        check(destinations.send, {"h1": OLD}, to=(Destination(receiver.url(), "line 1 of urls"),))
    assert [one["title"] for one in receiver.taken] == ["kvmfleet: h1 drifted"]


def test_a_destination_that_hangs_does_not_hold_up_the_others(receiver: Receiver) -> None:
    with Receiver() as slow:
        slow.answer, slow.handle_error = None, lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=slow.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        hung, well = Destination(slow.url(), "slow"), Destination(receiver.url(), "well")
        both = [(hung, Message("t", "b", "info")), (well, Message("t", "b", "info"))]
        sent: dict[Destination, str] = {}
        for limit_s in longer(3, lambda: slow.asked and not sent[well]):
            sent.update(destinations.send(both, limit_s=limit_s))
        slow.over.set()
        slow.shutdown()
        thread.join()
    assert sent == {hung: f"not done after {limit_s:g} s", well: ""}


def test_nobody_but_the_sender_sees_the_url(receiver: Receiver, state: Path) -> None:
    provisioned("h1")
    seen: list[bytes] = []

    def look(messages: Sequence[tuple[Destination, Message]]) -> Mapping[Destination, str]:
        receiver.answer = None
        sending = threading.Thread(target=destinations.send, args=(messages,))
        sending.start()
        until(lambda: receiver.asked, limit_s=destinations.LIMIT_S)
        for process in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                try:
                    seen.append((process / name).read_bytes())
                except OSError:
                    continue
        receiver.over.set()
        sending.join()
        return dict.fromkeys((to for to, _ in messages), "")

    check(look, {"h1": OLD}, to=(Destination(receiver.url(), "there"),))
    assert any(b"sending.py" in one for one in seen)
    assert not any(SECRET.encode() in one for one in seen)
    assert not any(SECRET.encode() in file.read_bytes() for file in state.rglob("*") if file.is_file())


def drifted(name: str, number: int = 1, value: str = "1:7.1") -> HostDrift:
    items = tuple(Drift(f"package:p{n}", "1:7.2", value, 1.0) for n in range(number))
    return HostDrift(name, "drifted", since_s=1.0, seen_s=2.0, items=items)


def told(hosts: Sequence[HostDrift], known: Mapping[str, Notice] | None = None) -> tuple[Transition, ...]:
    return transitions(known or {}, hosts, {}, after=1)


def test_five_thousand_hosts_fit_into_a_message_with_the_most_important_first() -> None:
    hosts = [
        *(HostDrift(f"ok{n}", "in-sync", seen_s=2.0) for n in range(1000)),
        *(HostDrift(f"gone{n}", "unreachable", 1.0, 2.0, problem="x" * 9000) for n in range(1000)),
        *(drifted(f"hv{n}", 300 if n < 100 else 3, "v" * 5000) for n in range(3000)),
    ]
    made = message(told(hosts, {f"ok{n}": Notice("drifted") for n in range(1000)}), ("hosts.ini",))
    assert len(made.title) <= TITLE
    assert made.title == "kvmfleet: 3000 drifted, 1000 unreachable, 1000 in sync again"
    assert len(made.body) <= BODY
    first, *_ = lines = made.body.splitlines()
    assert first.startswith("hv0: drifted, 300 items: package:p0, package:p1, ")
    (digest,) = [line for line in lines if line.startswith("and ")]
    shown = sum("300 items" in line for line in lines)
    assert shown > 5
    assert digest == f"and {5000 - shown} hosts more: {3000 - shown} drifted, 1000 unreachable, 1000 in sync again"
    assert "--limit" not in made.body


def test_few_hosts_are_told_with_their_items_and_a_few_more_with_fewer() -> None:
    few = message(told([drifted("hv1", 7), drifted("hv2")]))
    assert few.body.count("→") == 6
    assert "and 2 items more" in few.body
    more = message(told([drifted(f"hv{n}", 7) for n in range(6)]))
    assert 0 < more.body.count("→") <= 12
    assert len(more.body) <= BODY


def test_what_a_host_says_is_one_plain_line_and_calls_nobody() -> None:
    hostile = "\x1b[31m\nnext line <b>@everyone</b> <!channel> <@U123> \u202e"
    item = Drift(f"package:{hostile}", hostile, None, 1.0)
    made = message(told([HostDrift(hostile, "drifted", 1.0, 2.0, (item,)), HostDrift("b", "unknown", 1.0, 2.0)]))
    assert len(made.body.splitlines()) == 6
    assert all(c.isprintable() or c == "\n" for c in made.title + made.body)
    for call in ("@everyone", "<!", "<@"):
        assert call not in made.title + made.body


@pytest.mark.parametrize("call", ["@alice", "(@bob.b", "@**carol**", '@"dave d"', "x @all"])
def test_a_host_calls_no_single_person_either(call: str) -> None:
    (item,) = (Drift(f"unit:a@1.service {call}", call, None, 1.0),)
    made = message(told([HostDrift("hv1", "drifted", 1.0, 2.0, (item,))]))
    assert call not in made.body
    assert "a@1.service" in made.body


@pytest.mark.parametrize(
    ("said", "told_so"),
    [
        ("[all is well](http://evil.example)", "[all is well] (http://evil.example)"),
        ("![x](http://evil.example/seen.png)", "![x] (http://evil.example/seen.png)"),
        ("<https://evil.example|our wiki>", "< https://evil.example|our wiki>"),
        ("<mailto:a@evil.example|ops>", "< mailto:a@evil.example|ops>"),
        ("<a href='http://evil.example'>x</a>", "< a href='http://evil.example'>x</a>"),
        ("see http://wiki.example/[kvm]", "see http://wiki.example/[kvm]"),
        ("<network><address a='1'/>[0] (x)", "<network><address a='1'/>[0] (x)"),
    ],
)
def test_what_a_host_says_shows_where_it_leads_and_stays_readable(said: str, told_so: str) -> None:
    item = Drift(f"file:{said}", said, None, 1.0)
    silent = HostDrift("hv2", "unreachable", 1.0, 2.0, problem=said)
    made = message(told([HostDrift("hv1", "drifted", 1.0, 2.0, (item,)), silent]))
    assert made.body.count(told_so) == 3
    (one,) = told([HostDrift(said, "drifted", 1.0, 2.0, (item,))])
    assert told_so in message([one]).title


def test_of_long_values_the_difference_is_shown() -> None:
    long = "same " * 40
    (one,) = told([HostDrift("hv1", "drifted", 1.0, 2.0, (Drift("network:n", long + "old", long + "new", 1.0),))])
    assert "old → …" in message([one]).body
    assert "new, since" in message([one]).body


def test_what_is_told_later_says_what_is_as_it_should_be_again() -> None:
    (first,) = told([drifted("hv1", 2)])
    assert first.now
    (second,) = told([drifted("hv1", 1)], {"hv1": first.now})
    assert (second.kind, second.items, second.gone) == ("changed", (), ("package:p1",))
    assert "as it should be again: package:p1" in message([second]).body


def written(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    file = tmp_path / "urls"
    file.write_text(text)
    file.chmod(mode)
    return str(file)


def test_a_file_holds_one_url_a_line_and_comments(tmp_path: Path) -> None:
    path = written(tmp_path, "# ours\n\njson://a\r\n  jsons://b  \njson://a\n")
    assert [(one.url, one.place) for one in destinations.read(path)] == [
        ("json://a", f"line 3 of {path}"),
        ("jsons://b", f"line 4 of {path}"),
    ]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602, 0o644])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path, "json://a", mode)
    with pytest.raises(UsageError, match=f"its mode is {mode:04o}") as raised:
        destinations.read(path)
    assert raised.value.hint == f"chmod 600 {path}"


def test_bad_urls_are_named_by_their_line_and_nothing_of_them_is_shown(tmp_path: Path) -> None:
    path = written(tmp_path, f"json://a\nnonsense://{SECRET}\nslack://{SECRET}\njson://b\n{SECRET}\n")
    done = kvmfleet("drift", "-vvv", "-i", "localhost,", "--notify", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"line 2 of {path}, line 3 of {path}, line 5 of {path}:" in done.stderr
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    ("content", "words"), [(b"# nothing\n", "names no URL"), (b"\xff", "not UTF-8"), (b"x" * 70_000, "no list of URLs")]
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = written(tmp_path, "")
    Path(path).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        destinations.read(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        destinations.read(str(tmp_path / "absent"))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "notify")
    with pytest.raises(UsageError, match="no regular file") as caught:
        destinations.read(str(tmp_path / "notify"))
    assert "KVMFLEET_NOTIFY" in caught.value.hint


def test_the_variable_serves_where_there_is_no_file_and_no_child_inherits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMFLEET_NOTIFY", "json://a\njson://b json://c")
    assert [one.place for one in named(None)] == [f"URL {n} of KVMFLEET_NOTIFY" for n in (1, 2, 3)]
    assert "KVMFLEET_NOTIFY" not in os.environ
    assert named(None) == ()


def test_a_url_in_an_argument_is_refused_without_repeating_it() -> None:
    for command in (["drift", "--notify"], ["notify", "test"]):
        done = CliRunner().invoke(cli, [*command, f"json://{SECRET}"])
        assert isinstance(done.exception, UsageError)
        assert "a file that holds URLs, not a URL" in done.exception.message
        assert SECRET not in str(done.exception) + done.output


def test_the_same_url_is_the_same_destination_and_another_is_another() -> None:
    ids = {Destination("json://a", "x").id, Destination("json://a", "y").id, Destination("json://b", "x").id}
    assert len(ids) == 2
    assert all("json" not in one for one in ids)


def kvmfleet(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "orchestrator", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)


def test_a_test_message_says_where_it_arrived(receiver: Receiver, tmp_path: Path) -> None:
    path = written(tmp_path, f"{receiver.url()}\njson://127.0.0.1:9/{SECRET}\n")
    done = kvmfleet("notify", "test", path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"line 1 of {path}: sent\nline 2 of {path}: not sent: no connection to the service\n"
    assert [one["title"] for one in receiver.taken] == ["kvmfleet: a test"]
    done = kvmfleet("notify", "test", KVMFLEET_NOTIFY=receiver.url())
    assert (done.returncode, done.stdout) == (0, "URL 1 of KVMFLEET_NOTIFY: sent\n")
    done = kvmfleet("notify", "test")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nobody to send a test to" in done.stderr


@pytest.mark.ansible
def test_a_notification_that_fails_is_shown_and_only_strict_makes_it_the_exit_code(
    receiver: Receiver, tmp_path: Path
) -> None:
    inventory = tmp_path / "hosts.ini"
    inventory.write_text("[kvm_hosts]\nhv1 ansible_host=127.0.0.1 ansible_port=9\n")
    receiver.answer = 500
    path = written(tmp_path, receiver.url())
    with Store() as store:  # something to tell: that host has drifted before, and this check cannot look
        store.begin("drift").watch(HostDrift("hv1", "unreachable"), None)
    for strict in ([], ["--strict"]):
        done = kvmfleet("drift", "-i", str(inventory), "--notify", path, "--json", *strict)
        assert done.returncode == 1
        assert json.loads(done.stdout)["summary"]["unreachable"] == 1
        assert f"the notification to line 1 of {path} was not sent: the service answered 500." in done.stderr
        assert f"Try the way there: kvmfleet notify test {path}\n" in done.stderr
        assert SECRET not in done.stderr + done.stdout
    receiver.answer = 200
    done = kvmfleet("drift", "-i", str(inventory), "--notify", path)
    assert (done.returncode, done.stderr.count("notification")) == (1, 0)
    assert [one["title"] for one in receiver.taken] == ["kvmfleet: hv1 unreachable"]


def test_apprise_is_imported_only_where_somebody_is_told() -> None:
    program = "import sys, orchestrator.cli.main, orchestrator.notify; print('apprise' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout == "False\n"
