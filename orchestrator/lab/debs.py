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
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path

import msgspec

__all__ = ["ARCHIVES", "LISTS", "NAME", "Wanted", "harvest", "offer"]

ARCHIVES = "var/cache/apt/archives"
LISTS = "var/lib/apt/lists"

NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*_[A-Za-z0-9.+~%-]+_[a-z0-9]+\.deb")
_CHUNK = 1 << 20


class Wanted(msgspec.Struct, frozen=True):
    """What the index says about a package file."""

    sha256: str
    size: int


def _index(root: Path, names: Iterable[str]) -> Mapping[str, Wanted]:
    """What an image's index says about files of these names; those that it does not know are missing."""
    packages = {name.partition("_")[0] for name in names}
    lists = sorted((root / LISTS).glob("*_Packages"))
    return {name: wanted for file in lists for name, wanted in _stanzas(file.read_text(encoding="utf-8"), packages)}


def _stanzas(text: str, packages: Set[str]) -> Iterator[tuple[str, Wanted]]:
    for stanza in text.split("\n\n"):
        if stanza.removeprefix("Package: ").partition("\n")[0] in packages:  # tens of thousands are none of ours
            fields = dict(re.findall(r"^(Package|Version|Architecture|SHA256|Size): (.*)$", stanza, re.MULTILINE))
            version = fields["Version"].replace(":", "%3a")  # as apt writes it, apt-pkg/acquire-item.cc
            name = f"{fields['Package']}_{version}_{fields['Architecture']}.deb"
            yield name, Wanted(fields["SHA256"], int(fields["Size"]))


def harvest(host_root: Path, cache: Path, image_root: Path) -> tuple[str, ...]:
    """Takes new packages from a host's cache; their names. Opens no link and nothing but regular files."""
    with _descend(host_root, ARCHIVES.split("/")) as archives:
        if archives is None:
            return ()
        new = [n for n in sorted(os.listdir(archives)) if NAME.fullmatch(n) and not (cache / n).exists()]
        known = _index(image_root, new) if new else {}
        cache.mkdir(parents=True, exist_ok=True)
        return tuple(name for name in new if name in known and _take(name, archives, cache, known[name]))


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


def _take(name: str, archives: int, cache: Path, wanted: Wanted) -> bool:
    new = cache / f".{name}.new"
    try:
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=archives)
    except OSError:  # a link, or gone meanwhile
        return False
    try:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode) or status.st_size != wanted.size:
            return False
        if _copy(opened, new, wanted.size) != wanted.sha256:
            new.unlink()
            return False
    finally:
        os.close(opened)
    new.replace(cache / name)
    return True


def _copy(opened: int, target: Path, size: int) -> str:
    """The SHA-256 of what was copied; never more than `size`, for the host may make the file grow while we read."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        while size and (chunk := os.read(opened, min(size, _CHUNK))):
            size -= len(chunk)
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def offer(cache: Path, root: Path) -> None:
    """Puts all kept packages into the cache of a host that has not been started yet."""
    for package in sorted(cache.glob("*.deb")):
        shutil.copy(package, root / ARCHIVES / package.name)
