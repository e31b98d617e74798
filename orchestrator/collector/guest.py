"""Boot a transient libvirt domain from a generated image, and clean up whatever happens.

The domain is made by a virsh that stays open with --autodestroy: when this process dies, however it dies, virsh's input
closes, its connection ends, and libvirt destroys the domain. Files that a kill -9 left are removed by a later boot.
"""

import glob
import os
import select
import subprocess
import time
import uuid
import xml.sax.saxutils
from typing import Any, Dict, List, Optional

from . import bootimage, files, shell
from .contract import Contract
from .libvirt import URI
from .limits import Deadline, undisturbed

PREFIX = "kvmfleet-proof-"
FOLDERS = ("/var/lib/libvirt/images", "/var/lib/libvirt")  # where AppArmor and SELinux let guests have their disks
LOGS = "/var/log/libvirt/qemu"
OLD_S = 600.0
CLEANING_S = 8.0
SHORT_S, LONG_S = 5.0, 60.0  # a boot takes 1 s in hardware and 5 to 10 s emulated

DOMAIN = """<domain type='{type}'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><apic/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
      <readonly/>
    </disk>
    <serial type='file'><source path='{log}'/><target port='0'/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def look(contract: Contract, depth: str, found: Dict[str, Any], deadline: Deadline) -> Dict[str, Any]:
    """Boot with KVM where a guest executes there; with TCG where KVM cannot, or could not boot because it emulates."""
    reason = why_not(depth, found)
    if reason:
        return {"outcome": "skipped", "detail": reason}
    remove_old()
    offered = found["libvirt"].get("domain_types", [])
    works = found["kvm"]["execution"]["outcome"] == "works"
    emulated = found["kvm"]["speed"]["outcome"] == "emulated"
    types = ["kvm"] * (works and "kvm" in offered) + ["qemu"] * ("qemu" in offered and (emulated or not works))
    if not types:
        return {"outcome": "skipped", "detail": "libvirt offers no usable type of domain: {}".format(offered or "none")}
    virsh = [shell.which("virsh"), "-c", contract.text("libvirt.uri", URI)]
    folder = next((path for path in FOLDERS if os.path.isdir(path)), "/var/tmp")
    answer: Dict[str, Any] = {}
    for later, kind in enumerate(types, 1 - len(types)):
        seconds = min((deadline.left_s() - CLEANING_S) / (2 if later else 1), LONG_S)
        if seconds < SHORT_S and not answer:
            raise OSError("{:.0f} s are left, too few to boot a guest".format(max(deadline.left_s(), 0)))
        if seconds >= SHORT_S:
            before, left = (
                ("with {domain_type}: {detail} ".format(**answer), answer["leftovers"]) if answer else ("", [])
            )
            answer = boot(virsh, folder, kind, found["qemu"]["binary"], seconds)
            answer.update(detail=before + answer["detail"], leftovers=left + answer["leftovers"])
        if answer["outcome"] == "works":
            break
    return answer


def why_not(depth: str, found: Dict[str, Any]) -> str:
    """Why no boot is tried, or an empty string."""
    if depth != "firmware":
        return "not asked for"
    if os.uname().machine != "x86_64":
        return "no boot image is written for {} yet".format(os.uname().machine)
    missing = [name for name in ("kvm", "qemu", "libvirt") if name not in found]
    if missing:
        return "nothing is known about {}".format(" and ".join(missing))
    if not found["qemu"].get("binary"):
        return "there is no QEMU"
    if not found["libvirt"].get("connected"):
        return "libvirt does not answer"
    return ""


class Proof:
    """The names of everything that one boot makes."""

    def __init__(self, folder: str, label: str) -> None:
        self.name = PREFIX + label
        self.uuid = str(uuid.uuid4())
        self.disk = os.path.join(folder, self.name + ".img")
        self.log = os.path.join(folder, self.name + ".log")
        self.xml = os.path.join(folder, self.name + ".xml")

    def traces(self) -> List[str]:
        """Our files, and those that libvirt keeps about a domain that is gone."""
        kept = [
            "{}/{}.log*".format(LOGS, self.name),
            "/etc/apparmor.d/libvirt/libvirt-{}*".format(self.uuid),
        ]
        return [path for pattern in [self.disk, self.log, self.xml, *kept] for path in glob.glob(pattern)]


def boot(virsh: List[str], folder: str, kind: str, emulator: str, seconds: float) -> Dict[str, Any]:
    """One domain of one type. `step` is the last milestone that was reached."""
    nonce = uuid.uuid4().hex
    proof = Proof(folder, uuid.uuid4().hex[:12])
    answer: Dict[str, Any] = {"outcome": "broken", "domain_type": kind, "step": "", "detail": ""}
    begun, session = time.monotonic(), None
    try:
        for path, content in ((proof.disk, bootimage.image(nonce)), (proof.xml, _xml(proof, kind, emulator))):
            create(path, content)
        answer["step"] = "image"
        session = shell.start(virsh, stdin=subprocess.PIPE)
        assert session.stdin
        session.stdin.write("create {} --autodestroy\n".format(proof.xml).encode("ascii"))
        session.stdin.flush()
        follow(answer, proof, nonce, virsh, session, begun + seconds)
    finally:
        with undisturbed():
            answer["leftovers"] = clean(proof, virsh, session, answer["step"] == "poweroff")
        answer["duration_ms"] = (time.monotonic() - begun) * 1000
    return answer


def _xml(proof: Proof, kind: str, emulator: str) -> bytes:
    values = {"type": kind, "name": proof.name, "uuid": proof.uuid, "disk": proof.disk, "log": proof.log}
    return DOMAIN.format(emulator=xml.sax.saxutils.escape(emulator), **values).encode("utf-8")


def create(path: str, content: bytes) -> None:
    """A new file that QEMU's user may read. Raises OSError where something has that name."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as stream:
        stream.write(content)


def follow(
    answer: Dict[str, Any], proof: Proof, nonce: str, virsh: List[str], session: "subprocess.Popen[bytes]", until: float
) -> None:
    """Watch the milestones until the guest has turned itself off, something fails, or the time is over."""
    said = ""
    while time.monotonic() < until:
        said += heard(session)
        serial = files.text(proof.log)
        if nonce in serial:
            answer["step"] = "nonce"
        elif bootimage.GREETING in serial:
            answer["step"] = "firmware"
        elif " created from " in said:
            answer["step"] = "create"
        if answer["step"] == "nonce" and gone(proof, virsh):
            answer.update(outcome="works", step="poweroff")
            return
        problem = complaint(said)
        if problem or session.poll() is not None:
            answer["detail"] = problem or "virsh ended by itself"
            return
        time.sleep(0.05)
    answer["detail"] = "time is over after the step {}. {}".format(answer["step"], last_words(proof)).strip()


def heard(session: "subprocess.Popen[bytes]") -> str:
    """What virsh has said meanwhile."""
    parts = b""
    for pipe in (session.stdout, session.stderr):
        while pipe and select.select([pipe], [], [], 0)[0]:
            data = os.read(pipe.fileno(), 4096)
            if not data:
                break
            parts += data
    return parts.decode("utf-8", "replace")


def complaint(said: str) -> str:
    """The reason in "error: Failed to create domain from FILE", "error: REASON"."""
    errors = [line[len("error: ") :].strip() for line in said.splitlines() if line.startswith("error: ")]
    return "; ".join(error for error in errors if not error.startswith("Failed to create domain")) if errors else ""


def last_words(proof: Proof) -> str:
    """The last line of QEMU's log, which often names the reason."""
    lines = files.text("{}/{}.log".format(LOGS, proof.name)).strip().splitlines()
    return "QEMU's last line: " + lines[-1][:300] if lines else ""


def gone(proof: Proof, virsh: List[str]) -> bool:
    """No domain has that name any more. A transient one disappears when it ends."""
    answer = shell.run([*virsh, "domstate", proof.name], 5)
    return answer.code != 0 and "failed to get domain" in answer.err


def clean(proof: Proof, virsh: List[str], session: "Optional[subprocess.Popen[bytes]]", ended: bool) -> List[str]:
    """Remove the domain and the files; what resisted."""
    left = []
    if session:
        leave(session)
        if not ended and not destroyed(proof, virsh):
            left.append("domain " + proof.name)
    for path in proof.traces():
        try:
            os.unlink(path)
        except OSError:
            left.append(path)
    return left


def leave(session: "subprocess.Popen[bytes]") -> None:
    """Close virsh's input: it ends, and libvirt destroys what it made."""
    try:
        assert session.stdin
        session.stdin.close()
        session.wait(3)
    except (OSError, subprocess.TimeoutExpired):
        pass
    shell.end(session)


def destroyed(proof: Proof, virsh: List[str]) -> bool:
    """Also where --autodestroy did not do it."""
    try:
        for _ in range(3):
            if gone(proof, virsh):
                return True
            shell.run([*virsh, "destroy", proof.name], 5)
    except OSError:
        pass
    return False


def remove_old() -> None:
    """Files of a boot that was killed. Its domain went with its virsh."""
    for folder in (*FOLDERS, LOGS):
        for path in glob.glob("{}/{}*".format(folder, PREFIX)):
            try:
                if time.time() - os.lstat(path).st_mtime > OLD_S:
                    os.unlink(path)
            except OSError:
                pass
