"""The source that goes to a host, and the way back from whatever the host printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec
import pytest
from evidence import host
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.collector.limits import bounded
from orchestrator.collector.marks import BEGIN, END
from orchestrator.model.contract import Contract
from orchestrator.model.evidence import Evidence
from orchestrator.model.run import Boot
from orchestrator.payload import MAX_BYTES, decode, payload, shape
from orchestrator.reach.question import Answer, Question, interpret

PRINTED = f"\n{BEGIN}\n{msgspec.json.encode(host()).decode()}\n{END}\n".encode()


def run(program: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-I", "-"], input=program, capture_output=True, timeout=60, check=True)


def test_the_payload_gives_whole_evidence_and_nothing_else() -> None:
    answer = run(payload(Boot("none"), timeout_s=30))
    evidence = decode(answer.stdout)
    assert answer.stderr == b""
    assert answer.stdout.startswith(f"\n{BEGIN}\n".encode())
    assert answer.stdout.endswith(f"\n{END}\n".encode())
    assert evidence.errors == {}
    assert evidence.system.arch
    assert evidence.kvm.execution.detail == "not asked for"


def test_what_a_look_does_not_need_is_not_loaded() -> None:
    command = [sys.executable, "-X", "importtime", "-I", "-"]
    answer = subprocess.run(command, input=payload(Boot("none"), timeout_s=30), capture_output=True, timeout=60)
    loaded = set(re.findall(r"\| +([\w.]+)$", answer.stderr.decode(), re.MULTILINE))
    assert {"collector.main", "collector.network_live"} <= loaded
    for_boots = {"collector.boots", "collector.guest", "collector.machine_x86"}
    assert loaded.isdisjoint({*for_boots, "importlib.abc", "lzma", "ssl", "urllib", "uuid"})


def test_without_time_the_document_is_whole_and_says_so() -> None:
    evidence = decode(run(payload(Boot(), timeout_s=0)).stdout)
    assert set(evidence.errors) == set(Evidence.__struct_fields__) - {
        "schema",
        "collected_at_s",
        "duration_ms",
        "asked_at_s",
        "heard_at_s",
        "errors",
    }


def test_the_payload_is_small_ascii_and_the_same_every_time() -> None:
    program = payload(Boot(), timeout_s=60)
    assert program.isascii()
    assert len(program) < 120000
    assert program == payload(Boot(), timeout_s=60)


def test_the_limits_of_the_types_travel_with_it() -> None:
    fields = shape()["fields"]
    assert fields["system"]["fields"]["hostname"] == 256
    assert fields["contract"]["fields"]["text"] == 262144
    assert fields["errors"] == {"entries": 2048, "key": 256, "of": 4096}
    assert fields["clock"]["fields"]["source"] == 256  # may be None, and has a limit where it is not


def test_a_chatty_login_shell_does_not_matter() -> None:
    assert decode(b"Welcome to hv1!\r\nlast login: never" + PRINTED + b"logout\xff") == host()


def test_line_ends_of_a_terminal_do_not_matter() -> None:
    assert decode(PRINTED.replace(b"\n", b"\r\n")) == host()


def test_the_last_document_counts() -> None:
    assert decode(PRINTED.replace(b'"hv1"', b'"old"') + PRINTED).system.hostname == "hv1"


def test_the_controller_notes_its_own_time_whatever_the_host_says_of_it() -> None:
    question = Question(b"", decode, timeout_s=1.0)
    before = time.time()
    evidence = interpret("hv1", "ssh", Answer(PRINTED, b"", 0), question, asked_at_s=before).evidence
    assert evidence
    assert host().heard_at_s < evidence.asked_at_s == before <= evidence.heard_at_s <= time.time()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "an empty answer"),
        (b"\n \n", "an empty answer"),
        (b"bash: python3: command not found", "begins 'bash: python3"),
        (b"\x1b]0;owned\x07\x1b[2J", r"begins '\x1b]0;owned"),
        (PRINTED[:200], "breaks off"),
        (BEGIN.encode() + b"{" + END.encode(), "no JSON"),
        (BEGIN.encode() + b'{"schema": 1, "system": {"hostname": "\xff"}}' + END.encode(), "no JSON"),
        (BEGIN.encode() + b"[" * 100000 + END.encode(), "evidence"),
        (BEGIN.encode() + b'{"schema": 1}' + END.encode(), "collected_at_s"),
        (PRINTED.replace(b'"schema":1', b'"schema":2', 1), "schema 2"),
        (PRINTED.replace(b'"hv1"', b'"' + b"x" * 300 + b'"'), "length <= 256"),
        (PRINTED.replace(b'"tainted":4096', b'"tainted":1' + b"0" * 400), "Expected `int` <= 9223372036854775807"),
        (b"x" * (100 << 20), "more than"),
    ],
)
def test_no_evidence_is_one_line_that_says_why(raw: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        decode(raw)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@given(st.binary(max_size=2000))
def test_no_bytes_break_the_reader(raw: bytes) -> None:
    _decode_or_reason(raw)
    _decode_or_reason(BEGIN.encode() + raw + END.encode())


@settings(max_examples=200)
@given(st.integers(0, len(PRINTED) - 1), st.binary(min_size=1, max_size=8))
def test_no_damage_breaks_the_reader(at: int, damage: bytes) -> None:
    _decode_or_reason(PRINTED[:at] + damage + PRINTED[at + len(damage) :])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(Evidence.__struct_fields__)), JSON)
def test_no_value_in_a_section_breaks_the_reader(section: str, value: object) -> None:
    document = {**json.loads(msgspec.json.encode(host())), section: value}
    _decode_or_reason(f"{BEGIN}{json.dumps(document)}{END}".encode())


def test_a_number_that_no_machine_has_is_refused() -> None:
    certificates = {"/etc/pki/cert.pem": {"not_after_s": 10**400}}
    document = {**json.loads(msgspec.json.encode(host())), "remote": {"certificates": certificates}}
    with pytest.raises(ValueError, match=r"does not fit its schema: .*not_after_s"):
        decode(f"{BEGIN}{json.dumps(document)}{END}".encode())


@pytest.mark.parametrize("document", [Evidence, Contract])
def test_everything_that_a_host_may_say_is_bounded(document: type[msgspec.Struct]) -> None:
    assert list(_unbounded(msgspec.inspect.type_info(document), document.__name__)) == []


def _unbounded(kind: msgspec.inspect.Type, place: str) -> Iterator[str]:
    match kind:
        case msgspec.inspect.StructType():
            inner = [(field.type, f"{place}.{field.name}") for field in kind.fields]
        case msgspec.inspect.UnionType():
            inner = [(option, place) for option in kind.types]
        case msgspec.inspect.DictType():
            inner = [(kind.key_type, f"a key of {place}"), (kind.value_type, f"a value of {place}")]
        case msgspec.inspect.VarTupleType():
            inner = [(kind.item_type, f"an item of {place}")]
        case msgspec.inspect.Metadata():
            inner = [(kind.type, place)]
        case _:
            inner = []
    limits = {getattr(kind, name) for name in ("max_length", "ge", "le") if hasattr(kind, name)}
    if None in limits and not isinstance(kind, msgspec.inspect.FloatType):  # of these JSON's reader knows the limits
        yield place
    for one, where in inner:
        yield from _unbounded(one, where)


def _decode_or_reason(raw: bytes) -> None:
    """Evidence, or a plain ValueError of one line; anything else fails the test by itself."""
    try:
        decode(raw)
    except ValueError as error:
        kind, reason = type(error), str(error)
    else:
        kind, reason = ValueError, "none"
    assert kind is ValueError
    assert reason.isprintable()


def test_the_limit_is_above_what_the_types_allow_in_practice() -> None:
    assert len(PRINTED) < MAX_BYTES / 50


def test_what_may_be_absent_is_cut_as_well() -> None:
    """A journal has longer lines than the reader takes, and one would cost the whole evidence."""
    daemons = shape()["fields"]["daemons"]["fields"]
    assert daemons["journal"] == daemons["replaced"] == {"items": 2048, "of": 256}
    assert bounded({"journal": ["x" * 300]}, {"fields": daemons}) == {"journal": ["x" * 256]}
    assert bounded({"journal": None}, {"fields": daemons}) == {"journal": None}


def test_nothing_is_made_on_a_host_unless_it_was_asked_for() -> None:
    wishes = [payload(boot, timeout_s=5).decode() for boot in (Boot(), Boot(active=True))]
    assert ["'active': True" in wish for wish in wishes] == [False, True]
    assert "'active': False" in wishes[0]
