"""Do the file servers of the storage pools answer?"""

from __future__ import annotations

from shlex import quote

from orchestrator.checks.registry import Case, check, failed, not_applicable, passed
from orchestrator.model.contract import PoolWish
from orchestrator.model.evidence import Pool
from orchestrator.model.finding import Finding

GONE = ("EHOSTDOWN", "EHOSTUNREACH", "EIO", "ENOTCONN", "EREMOTEIO", "ESTALE", "ETIMEDOUT")
REFUSED = ("EACCES", "EPERM")  # root is refused only by a file server


@check(
    "storage.reach",
    "What the storage pools are mounted from answers",
    sections=("storage",),
    requires=("contract.present",),
    proves="The folder of each pool of files answers. Where a file server is gone, everything that touches its folder "
    "waits for it: guests, and libvirt itself, which lists its pools before it answers anybody.",
    how="A child process looks at each folder, makes a file there, writes and reads; the children of all pools at the "
    "same time, and none longer than ten seconds. libvirt is not needed for that.",
    todo="Bring the file server or its export back: what waited goes on by itself. Where it will not come back, run "
    "`umount --force --lazy PATH && systemctl restart libvirtd` (or virtstoraged), take the pool out of the inventory, "
    "and provision.",
)
def reach(case: Case) -> Finding:
    wishes = {name: wish for name, wish in case.wishes.pools.items() if wish.files}
    if not wishes:
        return not_applicable("the contract names no storage pool of files")
    found = case.evidence.storage.pools
    problems = {name: text for name, wish in wishes.items() if (text := _problem(wish, found.get(name, Pool())))}
    if problems:
        missing = [_source(wishes[name]) or f"what `findmnt -T {quote(wishes[name].path)}` shows" for name in problems]
        return failed(
            "; ".join(f"{name}: {text}" for name, text in problems.items()),
            expected="an answer",
            seen=f"{len(problems)} of {len(wishes)} folders do not answer",
            fix=f"Bring back {', '.join(missing)}; what waits for it then goes on by itself.",
        )
    return passed(f"the folders of {len(wishes)} storage pools answer")


def _problem(wish: PoolWish, pool: Pool) -> str:
    """Why it is the file server's fault, "" where it is not."""
    use, source = pool.use, _source(wish)
    whence = f"{wish.path} from {source}" if source else wish.path
    if use.outcome == "hangs":
        return f"{whence} does not answer ({use.errno})"
    if use.outcome == "broken" and use.errno in GONE:
        return f"{whence} is gone ({use.errno})"
    if use.outcome == "broken" and use.step == "folder" and use.errno in REFUSED and wish.type == "netfs":
        return f"{source} is not exported to this host any more ({use.errno})"
    return ""


def _source(wish: PoolWish) -> str:
    """The server and its folder, as mount(8) shows them."""
    if wish.type != "netfs":
        return ""
    return f"{wish.facts.get('source/host@name', '')}:{wish.facts.get('source/dir@path', '')}"


CHECKS = (reach,)
