"""Boot a transient libvirt domain, follow it by what it says on its serial line, and clean up whatever happens.

The domain is made by a virsh that stays open with --autodestroy: when this process dies, however it dies, virsh's input
closes, its connection ends, and libvirt destroys the domain. Files that a kill -9 left are removed by a later boot.
"""

import glob
import os
import re
import select
import subprocess
import time
import uuid
from typing import Any, Callable, Dict, List, Optional, Pattern, Sequence, Tuple

from . import boots, child, files, kvm, luggage, shell
from .contract import Contract
from .libvirt import URI
from .limits import Deadline, heed_reader, undisturbed
from .marks import PREFIX
from .wish import Wish

FOLDERS = ("/var/lib/libvirt/images", "/var/lib/libvirt")  # where AppArmor and SELinux let guests have their disks
GONE = "gone"
LOGS = "/var/log/libvirt/qemu"
VARIABLES = "/var/lib/libvirt/qemu/nvram"  # of UEFI firmware; libvirt makes them, and leaves them
OLD_S = 1200.0
CLEANING_S = 8.0
SHORT_S = 5.0
HOPELESS_S = 60.0  # with a KVM that emulates, where TCG remains: firmware boots in it, hardly a kernel does
LOOK_S = 1.0  # between two questions to libvirt, while only the serial line can bring news
COMPLAINT = re.compile(r"(?i)error|fail|cannot|could not")
CONTROL = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|[\x00-\x08\x0b-\x1f]")  # escapes of a terminal, and carriage returns

Tell = Callable[[str], None]


def look(contract: Contract, wish: Wish, found: Dict[str, Any], deadline: Deadline, tell: Tell) -> Dict[str, Any]:
    """Boot with KVM where a guest executes there; with TCG where KVM cannot, or could not boot because it emulates."""
    reason = why_not(found)
    if reason:
        return {"outcome": "skipped", "detail": reason}
    remove_old()
    types = domain_types(found)
    if not types:
        offered = found["libvirt"].get("domain_types") or "none"
        return {"outcome": "skipped", "detail": "libvirt offers no usable type of domain: {}".format(offered)}
    virsh = [shell.which("virsh"), "-c", contract.text("libvirt.uri", URI)]
    folder = next((path for path in FOLDERS if os.path.isdir(path)), "/var/tmp")
    try:
        if wish.image:
            boots.image_format(wish.image)
            refuse_unreadable(wish.image, contract)
        with luggage.unpacked(wish.parts, os.path.join(folder, PREFIX + "luggage")) as parts:
            return attempts(wish, parts, virsh, folder, types, found["qemu"]["binary"], deadline, tell)
    except boots.Unusable as problem:
        return {"outcome": "unusable", "depth": wish.depth, "detail": str(problem)}


def limit_s(wish: Wish) -> float:
    """The seconds of the whole: both attempts, what comes along, and cleaning up."""
    return boots.RECIPES[wish.depth].seconds + HOPELESS_S + 80


def domain_types(found: Dict[str, Any]) -> List[str]:
    """Which to try, in this order."""
    offered = found["libvirt"].get("domain_types", [])
    works = found["kvm"]["execution"]["outcome"] == "works"
    emulated = found["kvm"]["speed"]["outcome"] == "emulated"
    return ["kvm"] * (works and "kvm" in offered) + ["qemu"] * ("qemu" in offered and (emulated or not works))


def refuse_unreadable(path: str, contract: Contract) -> None:
    """Raises Unusable where QEMU's user may not read the file: libvirt would change its owner, we do not."""

    def attempt(_report: child.Report) -> Dict[str, Any]:
        try:
            os.close(files.opened(path))
        except OSError as error:
            return {"problem": (error.strerror or str(error)).lower()}
        return {"problem": ""}

    user = kvm.qemu_user(contract)
    answer = kvm.as_user(user, attempt)[0] if user else {}
    if answer.get("problem"):
        assert user
        raise boots.Unusable("{}: QEMU's user {} cannot read it: {}".format(path, user.name, answer["problem"]))


def attempts(
    wish: Wish,
    parts: Dict[str, str],
    virsh: List[str],
    folder: str,
    types: List[str],
    emulator: str,
    deadline: Deadline,
    tell: Tell,
) -> Dict[str, Any]:
    """The first type with which it boots, or the last."""
    recipe = boots.RECIPES[wish.depth]
    answer: Dict[str, Any] = {}
    for later, kind in enumerate(types, 1 - len(types)):
        patience = min(recipe.seconds, HOPELESS_S) if later else recipe.seconds
        seconds = min((deadline.left_s() - CLEANING_S) / (2 if later else 1), patience)
        if seconds < SHORT_S and not answer:
            raise OSError("{:.0f} s are left, too few to boot a guest".format(max(deadline.left_s(), 0)))
        if seconds >= SHORT_S:
            before, left = (
                ("With {domain_type}: {detail} ".format(**answer), answer["leftovers"]) if answer else ("", [])
            )
            answer = boot(wish, parts, virsh, folder, kind, emulator, seconds, tell)
            answer.update(detail=before + answer["detail"], leftovers=left + answer["leftovers"])
        if answer["outcome"] == "works":
            break
    return answer


def why_not(found: Dict[str, Any]) -> str:
    """Why no boot is tried, or an empty string."""
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
    """The names of everything that one boot makes, and how far it came."""

    def __init__(self, folder: str, kind: str, depth: str, tell: Tell) -> None:
        self.tell = tell
        self.name = PREFIX + uuid.uuid4().hex[:12]
        self.uuid = str(uuid.uuid4())
        self.stem = os.path.join(folder, self.name)
        self.log, self.xml = self.stem + ".log", self.stem + ".xml"
        self.begun = time.monotonic()
        self.answer: Dict[str, Any] = {"outcome": "broken", "depth": depth, "domain_type": kind, "step": ""}
        self.answer.update(detail="", said="", milestones={})

    def reached(self, step: str) -> None:
        """A milestone. It is told at once, to whoever reads along."""
        self.answer["step"] = step
        self.answer["milestones"][step] = (time.monotonic() - self.begun) * 1000
        self.tell("{depth} with {domain_type}: {step}".format(**self.answer))

    def serial(self) -> str:
        """The end of what the guest has said, in plain text."""
        return CONTROL.sub("", files.tail(self.log))

    def traces(self) -> List[str]:
        """Our files, and those that libvirt keeps about a domain that is gone."""
        kept = [
            self.stem + ".*",
            "{}/{}_VARS.*".format(VARIABLES, self.name),
            "{}/{}.log*".format(LOGS, self.name),
            "/etc/apparmor.d/libvirt/libvirt-{}*".format(self.uuid),
        ]
        return [path for pattern in kept for path in glob.glob(pattern)]


def boot(
    wish: Wish,
    parts: Dict[str, str],
    virsh: List[str],
    folder: str,
    kind: str,
    emulator: str,
    seconds: float,
    tell: Tell,
) -> Dict[str, Any]:
    """One domain of one type. `step` is the last milestone that was reached."""
    recipe, nonce = boots.RECIPES[wish.depth], uuid.uuid4().hex
    proof, session, ended = Proof(folder, kind, wish.depth, tell), None, False
    try:
        values = dict(parts, type=kind, name=proof.name, uuid=proof.uuid, stem=proof.stem, emulator=emulator)
        values.update(recipe.make(proof.stem, nonce, wish))
        boots.create(proof.xml, boots.domain(recipe, values))
        proof.reached("image")
        session = shell.start(virsh, stdin=subprocess.PIPE)
        assert session.stdin
        session.stdin.write("create {} --autodestroy\n".format(proof.xml).encode("ascii"))
        session.stdin.flush()
        ended = follow(proof, recipe, boots.patterns(recipe, values), virsh, session, proof.begun + seconds)
    finally:
        with undisturbed():
            proof.answer["leftovers"] = clean(proof, virsh, session, ended)
        proof.answer["duration_ms"] = (time.monotonic() - proof.begun) * 1000
    return proof.answer


def follow(
    proof: Proof,
    recipe: boots.Recipe,
    milestones: "Sequence[Tuple[str, Pattern[str]]]",
    virsh: List[str],
    session: "subprocess.Popen[bytes]",
    until: float,
) -> bool:
    """Watch the milestones until the guest is where it should be, something fails, or the time is over.

    Whether the domain is known to be gone.
    """
    answer, waiting, said, look_at = proof.answer, list(milestones), "", 0.0
    while time.monotonic() < until:
        heed_reader()
        said += heard(session)
        if answer["step"] == "image" and " created from " in said:
            proof.reached("create")
        state = ""
        if answer["step"] != "image" and (not waiting or time.monotonic() > look_at):
            state, look_at = domstate(proof, virsh), time.monotonic() + LOOK_S
        waiting = advance(proof, waiting)  # after the question: what a guest said that is gone now, is all there
        if not waiting and (state == GONE or not recipe.ends):
            if recipe.ends:
                proof.reached("poweroff")
            answer["outcome"] = "works"
            return state == GONE
        refusal, problem = complaint(said), trouble(state)
        if refusal or problem or session.poll() is not None:
            story = "{} {}".format(problem or "virsh ended by itself.", last_words(proof)).strip()
            answer["detail"] = refusal + "." if refusal else story
            return state == GONE
        time.sleep(0.05)
    answer["detail"] = "time is over after the step {}. {}".format(answer["step"], last_words(proof)).strip()
    return False


def advance(proof: Proof, waiting: "List[Tuple[str, Pattern[str]]]") -> "List[Tuple[str, Pattern[str]]]":
    """What is still to come. A later milestone shows that the earlier ones were passed."""
    serial = proof.serial() if waiting else ""
    for number, (step, pattern) in reversed(list(enumerate(waiting, 1))):
        found = pattern.search(serial)
        if found:
            proof.answer["said"] = " ".join(found.groupdict().get("said", "").split())
            proof.reached(step)
            return waiting[number:]
    return waiting


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
    """What QEMU complained about, and the last line of the guest: together they often name the reason."""
    log = files.tail("{}/{}.log".format(LOGS, proof.name)).strip().splitlines()
    own = (line for line in log if not line.endswith("\\") and "shutting down" not in line)  # not its command line
    complaints = [line for line in own if COMPLAINT.search(line)]
    said = proof.serial().strip().splitlines()
    words = ["QEMU: " + line.strip()[:300] for line in complaints[-1:]]
    words += ["The guest's last line: " + line.strip()[-300:] for line in said[-1:]]
    return " ".join(words)


def domstate(proof: Proof, virsh: List[str]) -> str:
    """As libvirt names it: running, paused; GONE when no domain has that name, as when a transient one has ended."""
    try:
        answer = shell.run([*virsh, "domstate", proof.name], 5)
    except OSError:  # a busy daemon answers the next time
        return ""
    if answer.code == 0:
        return str(answer.out.strip())
    return GONE if "failed to get domain" in answer.err else ""


def trouble(state: str) -> str:
    """Why it makes no sense to wait any longer, or an empty string."""
    if state == GONE:
        return "the guest stopped before it had said what it should."
    return "KVM or QEMU stopped the guest, it is {}.".format(state) if state in ("paused", "crashed") else ""


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
            if domstate(proof, virsh) == GONE:
                return True
            shell.run([*virsh, "destroy", proof.name], 5)
    except OSError:
        pass
    return False


def remove_old() -> None:
    """Files of a boot that was killed. Its domain went with its virsh."""
    for folder in (*FOLDERS, LOGS, VARIABLES, "/var/tmp"):
        for path in glob.glob("{}/{}*".format(folder, PREFIX)):
            try:
                if time.time() - os.lstat(path).st_mtime > OLD_S:
                    os.unlink(path)
            except OSError:
                pass
