"""What the controller asked for."""

from typing import NamedTuple, Tuple


class Wish(NamedTuple):
    """How deep to prove, and what a boot needs for that."""

    depth: str
    image: str = ""
    expect: str = ""  # a regular expression, "" for anything
    parts: Tuple[Tuple[str, int], ...] = ()  # names and sizes of what comes along with the question
    active: bool = False  # libvirt may be told to make something, and to remove it

    @property
    def boots(self) -> bool:
        return self.depth not in ("none", "proof")
