"""Files that come along with the question, such as a kernel: kept while a guest boots from them, then removed."""

import contextlib
import os
import sys
import uuid
from typing import BinaryIO, Dict, Iterator, Sequence, Tuple

from . import files
from .limits import undisturbed

VARIABLE = "KVMFLEET_LUGGAGE"  # names a file on this host; without it they follow the program on standard input
CHUNK = 1 << 20


@contextlib.contextmanager
def unpacked(parts: Sequence[Tuple[str, int]], stem: str) -> Iterator[Dict[str, str]]:
    """The parts by name, each as the path of a file that QEMU's user may read. They come in this order, end to end."""
    paths: Dict[str, str] = {}
    try:
        if parts:
            with source() as stream:
                for name, size in parts:
                    paths[name] = "{}-{}.{}".format(stem, uuid.uuid4().hex[:12], name)
                    with os.fdopen(files.created(paths[name]), "wb") as target:
                        copy(stream, target, size, name)
        yield paths
    finally:
        with undisturbed():
            for path in paths.values():
                with contextlib.suppress(OSError):
                    os.unlink(path)


def source() -> BinaryIO:
    path = os.environ.get(VARIABLE)
    if not path:
        return sys.stdin.buffer
    stream = os.fdopen(files.opened(path, os.O_NOFOLLOW), "rb")
    os.unlink(path)  # whoever sent it may not be there any more when we are done
    return stream


def copy(stream: BinaryIO, target: BinaryIO, size: int, name: str) -> None:
    """Exactly `size` bytes. Raises OSError where there are fewer."""
    left = size
    while left:
        data = stream.read(min(left, CHUNK))
        if not data:
            raise OSError("the {} did not arrive, {} of its {} bytes are missing".format(name, left, size))
        target.write(data)
        left -= len(data)
