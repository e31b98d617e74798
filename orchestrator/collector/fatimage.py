"""A small disk with a FAT12 file system: what UEFI firmware looks for a shell script or a boot loader on."""

import struct
from typing import Dict, List

SECTOR = 512
CLUSTER = 4 * SECTOR
RESERVED, ROOT_ENTRIES = 1, 512
FAT_SECTORS = 12  # two tables of 4084 entries of 12 bits, the most that FAT12 has
END, FOLDER, ARCHIVE = 0xFFF, 0x10, 0x20
CLUSTERS = 4000
SIZE = (RESERVED + 2 * FAT_SECTORS) * SECTOR + ROOT_ENTRIES * 32 + CLUSTERS * CLUSTER


def image(contents: Dict[str, bytes]) -> bytes:
    """A disk of 8 MB with these files. Names are 8.3 in capitals, with folders before a slash: EFI/BOOT/BOOTX64.EFI."""
    disk = Disk()
    root = disk.folder(tree(contents), parent=0)
    assert len(root) <= ROOT_ENTRIES * 32, "too many files in the root folder"
    table = packed(disk.chain)
    assert len(disk.data) <= CLUSTERS * CLUSTER, "the files do not fit"
    table = table.ljust(FAT_SECTORS * SECTOR, b"\0")
    return (boot_sector() + 2 * table + root.ljust(ROOT_ENTRIES * 32, b"\0") + bytes(disk.data)).ljust(SIZE, b"\0")


def boot_sector() -> bytes:
    """The BIOS parameter block: a whole disk without partitions, which firmware accepts as it does a floppy."""
    geometry = struct.pack(
        "<HBHBHHBHHHII",
        SECTOR, CLUSTER // SECTOR, RESERVED, 2, ROOT_ENTRIES, SIZE // SECTOR, 0xF8, FAT_SECTORS, 32, 2, 0, 0,
    )  # fmt: skip
    extended = struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 0, b"NO NAME    ", b"FAT12   ")
    return (b"\xeb\x3c\x90KVMFLEET" + geometry + extended).ljust(510, b"\0") + b"\x55\xaa"


def tree(contents: Dict[str, bytes]) -> Dict[str, object]:
    """Nested tables out of paths."""
    root: Dict[str, object] = {}
    for path, content in sorted(contents.items()):
        *folders, name = path.split("/")
        here = root
        for folder in folders:
            here = here.setdefault(folder, {})  # type: ignore[assignment]
        here[name] = content
    return root


class Disk:
    """Clusters, in the order in which they are given out; the first two entries of the chain are no clusters."""

    def __init__(self) -> None:
        self.chain: List[int] = [0xFF8, END]
        self.data = bytearray()

    def folder(self, inside: Dict[str, object], parent: int) -> bytes:
        """The entries of a folder. Those of its own folders are stored, each with its way up."""
        entries = b""
        for name, what in sorted(inside.items()):
            if isinstance(what, dict):
                here = self.take(self.clusters(32 * (len(what) + 2)))
                ways = entry(".", FOLDER, here) + entry("..", FOLDER, parent)
                self.put(here, ways + self.folder(what, here))
                entries += entry(name, FOLDER, here)
            else:
                assert isinstance(what, bytes)
                first = 0  # an empty file has no cluster
                if what:
                    first = self.take(self.clusters(len(what)))
                    self.put(first, what)
                entries += entry(name, ARCHIVE, first, len(what))
        return entries

    @staticmethod
    def clusters(size: int) -> int:
        return -(-size // CLUSTER)

    def take(self, number: int) -> int:
        """The first of so many clusters in a row."""
        first = len(self.chain)
        self.chain += [*range(first + 1, first + number), END]
        self.data += bytes(number * CLUSTER)
        return first

    def put(self, first: int, content: bytes) -> None:
        at = (first - 2) * CLUSTER
        self.data[at : at + len(content)] = content


def entry(name: str, kind: int, first: int, size: int = 0) -> bytes:
    base, _, extension = (name, "", "") if name in (".", "..") else name.partition(".")
    assert max(len(base) - 8, len(extension) - 3) <= 0, "no 8.3 name: " + name
    field = base.ljust(8).encode("ascii") + extension.ljust(3).encode("ascii")
    # 1980-01-01, the first day of FAT: the same image every time
    return struct.pack("<11sB10xHHHI", field, kind, 0, 0x21, first, size)


def packed(chain: List[int]) -> bytes:
    """Two entries of 12 bits in three bytes."""
    pairs = zip(chain[::2], [*chain, 0][1::2])  # noqa: B905 - Python 3.6; an even chain has a zero too many
    return b"".join((low | high << 12).to_bytes(3, "little") for low, high in pairs)
