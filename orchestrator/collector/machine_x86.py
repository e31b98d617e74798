"""A virtual machine of one page table and a few bytes of code, through the KVM ioctls of x86_64.

Numbers and layouts: linux/kvm.h and asm/kvm.h, documented in the kernel's virt/kvm/api.rst.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import time
from typing import Any, Callable, Dict, Optional

from .kvm import GET_API_VERSION

CREATE_VM = 0xAE01
GET_VCPU_MMAP_SIZE = 0xAE04
CREATE_VCPU = 0xAE41
SET_USER_MEMORY_REGION = 0x4020AE46
SET_TSS_ADDR = 0xAE47
RUN = 0xAE80
SET_REGS = 0x4090AE82
GET_SREGS = 0x8138AE83
SET_SREGS = 0x4138AE84
GET_STATS_FD = 0xAECE

EXIT_IO, EXIT_HLT = 2, 5
MEMORY = 0x10000
CODE, NONCE, ECHO = 0x1000, 0x2000, 0x2100

# 16 bit: for each of 16 bytes at 0x2000, XOR with 0x5a, write it to port 0x3f8 and to 0x2100+i; then halt.
#   mov dx,0x3f8 / mov si,0x2000 / mov cx,16 / lodsb / xor al,0x5a / out dx,al / mov [si+0xff],al / loop / hlt
PROOF = bytes.fromhex("baf803 be0020 b91000 ac 345a ee 8884ff00 e2f6 f4".replace(" ", ""))
# 64 bit: mov ecx,N / dec ecx / jnz / hlt
LOOP = bytes.fromhex("ffc9 75fc f4".replace(" ", ""))


class Step(Exception):
    """What went wrong: the errno of an ioctl, or an exit that was not expected."""

    def __init__(self, detail: str, reason: Optional[int] = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason = reason


class Machine:
    """One virtual processor with 64 KiB of memory. The process that makes it must end soon: nothing is freed."""

    def __init__(self, report: Callable[[str], None]) -> None:
        report("open")
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        report("version")
        version = fcntl.ioctl(kvm, GET_API_VERSION, 0)
        if version != 12:
            raise Step("KVM speaks version {} of its interface; every kernel since 2.6.22 speaks 12".format(version))
        report("create_vm")
        vm = fcntl.ioctl(kvm, CREATE_VM, 0)
        try:  # Intel needs three pages for real mode; elsewhere it does nothing or does not exist
            fcntl.ioctl(vm, SET_TSS_ADDR, 0x7FFBD000)
        except OSError:
            pass
        report("memory")
        self.memory = mmap.mmap(-1, MEMORY)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        fcntl.ioctl(vm, SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0, MEMORY, address))
        report("create_vcpu")
        self.vcpu = fcntl.ioctl(vm, CREATE_VCPU, 0)
        self.state = mmap.mmap(self.vcpu, fcntl.ioctl(kvm, GET_VCPU_MMAP_SIZE, 0))

    def put(self, at: int, data: bytes) -> None:
        self.memory[at : at + len(data)] = data

    def real_mode(self) -> None:
        """Start at CODE as a processor after reset would, with the code segment at 0."""
        special = bytearray(312)
        fcntl.ioctl(self.vcpu, GET_SREGS, special)
        struct.pack_into("=Q", special, 0, 0)  # cs.base
        struct.pack_into("=H", special, 12, 0)  # cs.selector
        fcntl.ioctl(self.vcpu, SET_SREGS, bytes(special))
        self._registers()

    def long_mode(self) -> None:
        """Start at CODE in 64 bit mode with the first 2 MiB mapped one to one.

        The mode of every kernel that a guest will run. Intel without unrestricted guests emulates real mode rightly, so
        a loop in real mode would say nothing there.
        """
        for at, entry in ((0x4000, 0x5003), (0x5000, 0x6003), (0x6000, 0x83)):  # PML4, PDPT, one large page
            self.put(at, struct.pack("=Q", entry))
        special = bytearray(312)
        fcntl.ioctl(self.vcpu, GET_SREGS, special)
        # base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable
        struct.pack_into("=QIHBBBBBBBBBx", special, 0, 0, 0xFFFFFFFF, 8, 11, 1, 0, 0, 1, 1, 1, 0, 0)
        for segment in range(1, 6):  # ds, es, fs, gs, ss
            struct.pack_into("=QIHBBBBBBBBBx", special, 24 * segment, 0, 0xFFFFFFFF, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0)
        cr0, cr3, cr4, efer = 0x80050033, 0x4000, 0x20, 0x500  # PG WP NE ET MP PE AM; PAE; LME LMA
        struct.pack_into("=QQQQQQ", special, 224, cr0, 0, cr3, cr4, 0, efer)
        fcntl.ioctl(self.vcpu, SET_SREGS, bytes(special))
        self._registers()

    def _registers(self) -> None:
        registers = bytearray(144)
        struct.pack_into("=QQ", registers, 128, CODE, 2)  # rip, rflags
        fcntl.ioctl(self.vcpu, SET_REGS, bytes(registers))

    def run(self) -> int:
        """Run until the guest leaves; the reason. A signal may interrupt, then it goes on."""
        while True:
            try:
                fcntl.ioctl(self.vcpu, RUN, 0)
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                raise
            return int(struct.unpack_from("=I", self.state, 8)[0])

    def written(self) -> bytes:
        """The byte of the OUT instruction that the guest left with; b"" if it was another access."""
        direction, size, port, count, offset = struct.unpack_from("=BBHIQ", self.state, 32)
        return self.state[offset : offset + 1] if (direction, size, port, count) == (1, 1, 0x3F8, 1) else b""

    def emulated_instructions(self) -> Optional[int]:
        """The counter insn_emulation, or None where the kernel (before 5.14) has no KVM_GET_STATS_FD."""
        try:
            return statistic(fcntl.ioctl(self.vcpu, GET_STATS_FD, 0), "insn_emulation")
        except OSError:
            return None


def statistic(fd: int, name: str) -> Optional[int]:
    """One number of a binary statistics file: a header, descriptors with names, then the values."""
    _, name_size, count, _, descriptors, data = struct.unpack("=6I", os.pread(fd, 24, 0))
    size = 16 + name_size
    table = os.pread(fd, size * count, descriptors)
    for at in range(0, len(table), size):
        _, _, _, offset, _, label = struct.unpack_from("=IhHII{}s".format(name_size), table, at)
        if label.split(b"\0")[0].decode("ascii", "replace") == name:
            return int(struct.unpack("=Q", os.pread(fd, 8, data + offset))[0])
    return None


def prove(report: Callable[[str], None], nonce: bytes) -> Dict[str, Any]:
    """Execute PROOF and compare what it wrote. Raises OSError and Step."""
    machine = Machine(report)
    report("registers")
    machine.put(CODE, PROOF)
    machine.put(NONCE, nonce)
    machine.real_mode()
    report("run")
    seen = b""
    reason = machine.run()
    while reason == EXIT_IO and len(seen) < len(nonce):
        seen += machine.written()
        reason = machine.run()
    if reason != EXIT_HLT:
        raise Step(exit_text(reason, machine), reason)
    report("compare")
    expected = bytes(byte ^ 0x5A for byte in nonce)
    if seen != expected or machine.memory[ECHO : ECHO + len(nonce)] != expected:
        raise Step("the guest halted, but what it wrote is not the nonce")
    return {"detail": ""}


def time_loop(report: Callable[[str], None], iterations: int) -> Dict[str, Any]:
    """Best of three timings of a loop of two instructions, and how many instructions were emulated meanwhile."""
    machine = Machine(report)
    machine.put(CODE, b"\xb9" + struct.pack("=I", iterations) + LOOP)
    before = machine.emulated_instructions()
    best_s = 1e9
    for _ in range(3):
        machine.long_mode()
        report("run")
        begun = time.perf_counter()
        reason = machine.run()
        best_s = min(best_s, time.perf_counter() - begun)
        if reason != EXIT_HLT:
            raise Step(exit_text(reason, machine), reason)
    after = machine.emulated_instructions()
    emulated = None if before is None or after is None else (after - before) // 3
    return {"loop_ms": best_s * 1000, "iterations": iterations, "emulated_instructions": emulated}


def exit_text(reason: int, machine: Machine) -> str:
    """An exit of KVM_RUN in words."""
    if reason == 9:
        hardware = struct.unpack_from("=Q", machine.state, 32)[0]
        return "the processor refused to enter the guest (hardware reason {:#x})".format(hardware)
    names = {
        2: "an unexpected port access",
        6: "an access outside its memory",
        8: "a triple fault",
        17: "an error inside KVM",
    }
    return "the guest left with {} (exit {})".format(names.get(reason, "an unexpected exit"), reason)
