"""Text from hosts, made safe to show."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.text import printable


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
