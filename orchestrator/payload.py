"""The collector as one source for `python3 -I` on a host, and the way back from what the host printed."""

from __future__ import annotations

import base64
import functools
import json
import zlib
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.collector.marks import BEGIN, END
from orchestrator.model.contract import SCHEMA
from orchestrator.model.evidence import Evidence
from orchestrator.model.run import Boot

__all__ = ["MAX_BYTES", "decode", "packed", "payload"]

MAX_BYTES = 1 << 20
"""No host has more to say, and honest evidence is a fiftieth of it. Readers stop here: `decode` rejects more."""

LOADER = """\
# kvmfleet looks at this machine and prints one JSON document. Nothing is installed, nothing is changed.
# It ends soon: to look for cycles, and to take the interpreter apart at the end, takes longer than most of it.
import gc; gc.disable()
import base64, json, os, sys, zlib
from importlib.machinery import ModuleSpec
SOURCES, SHAPE = json.loads(zlib.decompress(base64.b64decode("{packed}")).decode())
class Bundle:
    def find_spec(self, name, path, target=None):
        return ModuleSpec(name, self, is_package=name == "collector") if name in SOURCES else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(compile(SOURCES[module.__name__], module.__name__, "exec", dont_inherit=True), module.__dict__)
    def get_source(self, name):
        return SOURCES[name]
sys.dont_write_bytecode = True
sys.meta_path.insert(0, Bundle())
from collector.main import main
os._exit(main({wish}, {timeout_s!r}, SHAPE))
"""


def payload(boot: Boot, *, timeout_s: float) -> bytes:
    """Python source, to be fed on stdin. It answers within `timeout_s` and about three seconds for cleaning up."""
    # those of the collector's Wish: where the luggage lies is our affair
    fields = ("depth", "image", "expect", "parts", "active")
    wish = ascii({field: getattr(boot, field) for field in fields})
    return LOADER.format(packed=packed(), wish=wish, timeout_s=float(timeout_s)).encode("ascii")


@functools.cache
def packed() -> str:
    """Every module of the collector and the limits of the evidence, compressed: the part that all hosts get alike."""
    folder = Path(__file__).with_name("collector")
    names = {path: f"collector.{path.stem}" for path in sorted(folder.glob("*.py"))}
    sources = {name.removesuffix(".__init__"): path.read_text("utf-8") for path, name in names.items()}
    packed = zlib.compress(json.dumps([sources, shape()]).encode(), 9)
    return base64.b64encode(packed).decode("ascii")


@functools.cache
def shape() -> Any:
    """How large each part of the evidence may be, in the words of `collector.limits.bounded`."""
    return _shape(msgspec.inspect.type_info(Evidence))


def _shape(kind: msgspec.inspect.Type) -> Any:
    match kind:
        case msgspec.inspect.StructType():
            return {"fields": {field.encode_name: _shape(field.type) for field in kind.fields}}
        case msgspec.inspect.DictType():
            return {"entries": kind.max_length, "key": _shape(kind.key_type), "of": _shape(kind.value_type)}
        case msgspec.inspect.VarTupleType():
            return {"items": kind.max_length, "of": _shape(kind.item_type)}
        case msgspec.inspect.UnionType(types=types):  # something, or None
            return _shape(next(one for one in types if not isinstance(one, msgspec.inspect.NoneType)))
        case msgspec.inspect.StrType():
            return kind.max_length
        case msgspec.inspect.Metadata():
            return _shape(kind.type)
        case _:
            return None


def decode(raw: bytes) -> Evidence:
    """The evidence in what a host printed. Raises ValueError with one line that says why there is none.

    Whatever a login shell printed before or after is ignored; the last document counts.
    """
    if len(raw) > MAX_BYTES:
        raise ValueError(f"the answer has {len(raw)} bytes, more than {MAX_BYTES}")
    _, begin, rest = raw.rpartition(BEGIN.encode())
    if not begin:
        raise ValueError(
            f"no evidence in the answer, which begins {_excerpt(raw)}" if raw.strip() else "an empty answer"
        )
    document, end, _ = rest.partition(END.encode())
    if not end:
        raise ValueError("the answer breaks off in the middle of the evidence")
    try:
        evidence = msgspec.json.decode(document, type=Evidence)
    except msgspec.ValidationError as error:
        raise ValueError(f"the evidence does not fit its schema: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the evidence is no JSON: {error}") from error
    if evidence.schema != SCHEMA:
        raise ValueError(f"the evidence has schema {evidence.schema}, this kvmfleet reads {SCHEMA}")
    return evidence


def _excerpt(raw: bytes) -> str:
    """The first words of foreign output, as safe to print as any literal."""
    return ascii(raw[:80].decode("utf-8", "replace").strip())
