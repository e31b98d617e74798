"""Packages that hosts downloaded, kept for the next hosts, so that a second lab needs no network.

A host is not trusted: it could put anything under the name of a package. So a package is kept only when its SHA-256 is
the one in the image's package index, whose signature was verified when the image was built. apt itself would not
notice: it takes a file of the right size in its cache as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

__all__ = ["Wanted", "harvest", "index", "offer"]

ARCHIVES = "var/cache/apt/archives"
LISTS = "var/lib/apt/lists"

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*_[A-Za-z0-9.+~%-]+_[a-z0-9]+\.deb")
_CHUNK = 1 << 20


class Wanted(msgspec.Struct, frozen=True):
    """What the index says about a package file."""

    sha256: str
    size: int


def index(root: Path) -> Mapping[str, Wanted]:
    """File name in apt's cache to what the file has to be, for every package that an image's index knows."""
    lists = sorted((root / LISTS).glob("*_Packages"))
    return {name: wanted for file in lists for name, wanted in _stanzas(file.read_text(encoding="utf-8"))}


def _stanzas(text: str) -> Iterator[tuple[str, Wanted]]:
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Architecture|SHA256|Size): (.*)$", stanza, re.MULTILINE))
        if len(fields) == 5:
            version = fields["Version"].replace(":", "%3a")  # as apt writes it, apt-pkg/acquire-item.cc
            name = f"{fields['Package']}_{version}_{fields['Architecture']}.deb"
            yield name, Wanted(fields["SHA256"], int(fields["Size"]))


def harvest(host_root: Path, cache: Path, known: Mapping[str, Wanted]) -> tuple[str, ...]:
    """Takes new packages from a host's cache; their names. Opens no link and nothing but regular files."""
    cache.mkdir(parents=True, exist_ok=True)
    with _descend(host_root, ARCHIVES.split("/")) as archives:
        names = sorted(os.listdir(archives)) if archives is not None else []
        return tuple(
            name for name in names if _is_new(name, cache, known) and _take(name, archives, cache, known[name])
        )


def _is_new(name: str, cache: Path, known: Mapping[str, Wanted]) -> bool:
    return bool(_NAME.fullmatch(name)) and name in known and not (cache / name).exists()


@contextlib.contextmanager
def _descend(root: Path, parts: Iterable[str]) -> Iterator[int | None]:
    """A folder below `root`, opened step by step so that no link can lead out of it; None when there is no such."""
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        yield here
    except (FileNotFoundError, NotADirectoryError):
        yield None
    finally:
        os.close(here)


def _take(name: str, archives: int | None, cache: Path, wanted: Wanted) -> bool:
    new = cache / f".{name}.new"
    try:
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=archives)
    except OSError:  # a link, or gone meanwhile
        return False
    with open(opened, "rb") as source:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode) or status.st_size != wanted.size:
            return False
        digest = hashlib.sha256()
        left = wanted.size  # the host may make the file grow while we read
        with new.open("wb") as target:
            while left and (chunk := source.read(min(left, _CHUNK))):
                left -= len(chunk)
                digest.update(chunk)
                target.write(chunk)
    if digest.hexdigest() != wanted.sha256:
        new.unlink()
        return False
    new.replace(cache / name)
    return True


def offer(cache: Path, root: Path) -> None:
    """Puts all kept packages into the cache of a host that has not been started yet."""
    for package in sorted(cache.glob("*.deb")):
        shutil.copy(package, root / ARCHIVES / package.name)
