"""How long and how large is what a host may send."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["Count", "Document", "Names", "Number", "Short", "Table", "Text"]

Text = Annotated[str, msgspec.Meta(max_length=4096)]
Short = Annotated[str, msgspec.Meta(max_length=256)]
Names = Annotated[tuple[Short, ...], msgspec.Meta(max_length=2048)]
Document = Annotated[str, msgspec.Meta(max_length=65536)]
Table = Annotated[dict[Short, Text], msgspec.Meta(max_length=2048)]
Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
