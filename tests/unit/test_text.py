"""Text from hosts, made safe to show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.text import ago, listed, printable


def test_a_terminal_escape_is_written_out():
    assert printable("\x1b[31mred\x1b[0m \x9b2J \u202etxt") == "\\x1b[31mred\\x1b[0m \\x9b2J \\u202etxt"


def test_lines_are_joined_and_long_text_is_cut():
    assert printable("one\n two\t three") == "one two three"
    assert printable("x" * 500, limit=10) == "xxxxxxxxx…"


@given(st.text(alphabet=st.characters(), max_size=300))
def test_whatever_comes_in_what_goes_out_is_printable(text):
    assert printable(text).isprintable()


def test_a_lone_surrogate_does_not_break_the_output():
    printable("\udc80 broken").encode("utf-8")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "just now"), (59, "just now"), (60, "1 min ago"), (7199, "1 h ago"), (86400 * 400, "400 d ago")],
)
def test_how_long_ago_something_was_has_one_unit(seconds, words):
    assert ago(seconds) == words


@pytest.mark.parametrize(
    ("names", "told"),
    [([], ""), (["a"], "a"), (list("abcde"), "a, b, c, d, e"), (list("abcdefg"), "a, b, c, d, e and 2 more")],
)
def test_of_a_long_list_the_first_are_named_and_the_rest_counted(names, told):
    assert listed(names) == told
