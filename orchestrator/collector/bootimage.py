"""A disk of 1 MiB whose boot sector says a sentence on the serial line and turns the machine off. PC firmware only."""

SIZE = 1 << 20  # q35 hangs on smaller disks
GREETING = "KVMFLEET "
MASK = 0x5A
ORIGIN = 0x7C00

# The text is stored masked, so that seeing it in clear means that these instructions were executed.
CODE = """
    fa 31c0 8ed8 8ec0 8ed0 bc007c fb fc     cli; ds = es = ss = 0; sp = 0x7c00; sti; cld
    be TEXT                                 si = text
    ac 345a 7412                            next: al = [si++] ^ mask; end at a zero
    88c4                                    ah = al
    bafd03 ec a820 74fb                     wait until the transmitter takes a byte (bit 5 of 0x3fd)
    88e0 baf803 ee                          send
    ebe9                                    next
    bafd03 ec a840 74fb                     wait until everything has left (bit 6)
    b80153 31db cd15                        APM: connect the real mode interface,
    b80e53 31db b90201 cd15                 say that we speak version 1.2,
    b80753 bb0100 b90300 cd15               and turn everything off
    b80020 ba0406 ef ba04b0 ef              without APM: ACPI's S5 at the ports of QEMU's two machines
    fa f4 ebfc                              halt for good
"""


def machine_code(origin: int) -> bytes:
    """The bytes of CODE, with the address of the text, which follows them."""
    words = [word for line in CODE.strip().splitlines() for word in line.strip().split("  ")[0].split()]
    size = sum(2 if word == "TEXT" else len(word) // 2 for word in words)
    address = (origin + size).to_bytes(2, "little")
    return b"".join(address if word == "TEXT" else bytes.fromhex(word) for word in words)


def image(nonce: str) -> bytes:
    text = "{}{}\r\n".format(GREETING, nonce).encode("ascii") + b"\0"
    sector = machine_code(ORIGIN) + bytes(byte ^ MASK for byte in text)
    assert len(sector) <= 446, "no room for the partition table"
    return sector.ljust(510, b"\0") + b"\x55\xaa" + bytes(SIZE - 512)
