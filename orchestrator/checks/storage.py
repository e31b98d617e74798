"""Are the storage pools there, as declared, and usable for guests?"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, warned
from orchestrator.model import Finding, Pool, PoolWish

NOTHING = "the contract names no storage pool"
FULL_SHARE, FULL_MIB = 0.05, 65536
"""A pool is nearly full when both less than this share and less than this many MiB are left."""


def _pools(case: Case) -> Mapping[str, Pool]:
    found = case.evidence.storage.pools
    return {name: found.get(name, Pool()) for name in case.wishes.pools}


def _told(case: Case) -> Finding | None:
    """Why nothing can be said about pools."""
    error = case.evidence.storage.error
    if not case.wishes.pools:
        return not_applicable(NOTHING)
    if error:
        fix = f"Read `journalctl -u libvirtd -u virtstoraged`; then: {PROVISION}"
        return failed(f"libvirt tells nothing about pools: {error}", expected="an answer", seen=error, fix=fix)
    return None


@check(
    "storage.active",
    "The storage pools are active",
    sections=("storage",),
    requires=("contract.present", "libvirt.connect"),
    explained_by=("contract.packages", "storage.reach"),
    proves="Every pool of the contract is defined, active, and starts with the host; or not, where it was declared so.",
    how="virsh lists the pools; state and autostart are compared with the contract.",
    todo=f"`virsh pool-start POOL` says why one does not start. {PROVISION}",
)
def active(case: Case) -> Finding:
    if silent := _told(case):
        return silent
    problems, starts = [], []
    for name, wish in case.wishes.pools.items():
        pool = _pools(case)[name]
        if not pool.defined:
            problems.append(f"{name} is not defined")
            continue
        if pool.active != wish.active:
            problems.append(f"{name} is {'active' if pool.active else 'not active'}")
            starts.append(f"virsh pool-{'start' if wish.active else 'destroy'} {name}")
        if pool.autostart != wish.autostart:
            problems.append(f"{name} {'starts' if pool.autostart else 'does not start'} with the host")
            starts.append(f"virsh pool-autostart {name}{'' if wish.autostart else ' --disable'}")
    if not problems:
        return passed(f"{len(case.wishes.pools)} storage pools as declared, now and after a boot")
    fix = f"Run `{' && '.join(starts)}`; where that fails it says why." if starts else PROVISION
    if starts and len(starts) < len(problems):
        fix = f"{fix} {PROVISION}"
    return failed("; ".join(problems), expected="as declared", seen=f"{len(problems)} differences", fix=fix)


@check(
    "storage.equal",
    "The storage pools are what was declared",
    sections=("storage",),
    requires=("contract.present", "libvirt.connect"),
    explained_by=("storage.active", "storage.reach"),
    proves="libvirt's definition of each pool, and the one that an active pool runs with, say what the contract says; "
    "so do owner and mode of its folder.",
    how="Both XML documents of each pool as facts, without uuid, capacity and what else changes by itself; stat of the "
    "folder.",
    todo=f"Definition or folder: {PROVISION} Only the running pool: it restarts when no guest uses a volume of it.",
)
def equal(case: Case) -> Finding:
    if silent := _told(case):
        return silent
    changed, waiting = [], []
    for name, wish in case.wishes.pools.items():
        pool = _pools(case)[name]
        if not pool.defined:
            continue
        changed += [f"{name}: {text}" for text in _differences(wish.facts, pool.configured)]
        changed += [f"{name}: {text}" for text in _differences(_folder(wish), _folder_found(pool)) if _seen(pool, text)]
        if pool.active and pool.configured == wish.facts:
            waiting += [f"{name}: {text}" for text in _differences(wish.facts, pool.live)]
    if changed:
        return failed("; ".join(changed), expected="as declared", seen=f"{len(changed)} differences", fix=PROVISION)
    if waiting:
        names = " ".join(dict.fromkeys(text.split(":")[0] for text in waiting))
        return warned(
            f"defined as declared, but active with what was before: {'; '.join(waiting)}",
            expected="restarted",
            seen=f"{len(waiting)} differences",
            fix=f"Shut down the guests that use {names}, then: {PROVISION} A restart of the pool settles it.",
        )
    return passed(f"{len(case.wishes.pools)} storage pools as declared")


def _differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """In both directions: what somebody added is no less a difference."""
    return [
        f"{place} is {found.get(place) or 'not set'}, not {wanted.get(place) or 'unset'}"
        for place in sorted({*wanted, *found})
        if wanted.get(place) != found.get(place)
    ]


def _folder(wish: PoolWish) -> dict[str, str]:
    mode = "" if wish.mode is None else f"{wish.mode:04o}"
    return {"mode": mode, "owner": wish.owner, "group": wish.group}


def _folder_found(pool: Pool) -> dict[str, str]:
    mode = "" if pool.mode is None else f"{pool.mode:04o}"
    return {"mode": mode, "owner": pool.owner, "group": pool.group}


def _seen(pool: Pool, text: str) -> bool:
    """Nothing was declared, or the folder was not reached: the check of its use says that."""
    return pool.mode is not None and not text.endswith(", not unset")


@check(
    "storage.usable",
    "QEMU can use the storage pools",
    sections=("storage",),
    requires=("storage.reach", "storage.active"),
    proves="The user that QEMU runs as passes through to each pool of files, writes and reads a file there; and there "
    "is space left.",
    how="The collector makes a file without a name in the folder, gives it to that user as libvirt would, becomes the "
    "user, writes, reads. Nothing is left behind. Capacity is what libvirt says.",
    todo="The step that failed says what is in the way: `namei -l PATH` shows the modes on the way to a folder.",
)
def usable(case: Case) -> Finding:
    if silent := _told(case):
        return silent
    problems, full, tried = [], [], 0
    for name, wish in case.wishes.pools.items():
        pool = _pools(case)[name]
        if not wish.active:
            continue
        tried += 1
        if wish.files and pool.use.outcome != "works":
            problems.append(f"{name}: {pool.use.user or 'QEMU'} {_words(pool)} ({pool.use.errno or 'not tried'})")
        if pool.capacity_mib and pool.available_mib is not None:
            left = pool.available_mib
            if left < FULL_MIB and left < pool.capacity_mib * FULL_SHARE:
                full.append(f"{name} has {left} of {pool.capacity_mib} MiB left")
    if problems:
        paths = " ".join(case.wishes.pools[text.split(":")[0]].path for text in problems)
        fix = f"Run `namei -l {paths}` and let that user through, or provision with another owner or mode."
        return failed("; ".join(problems), expected="a file written and read", seen="not possible", fix=fix)
    if full:
        fix = "Remove volumes that no guest needs, or enlarge the storage."
        return warned("; ".join(full), expected="5 % or 64 GiB left", seen="less", fix=fix)
    return passed(f"{tried} storage pools can be used")


STEPS = {
    "folder": "does not find the folder",
    "create": "gets no file there",
    "give": "is given no file there",
    "enter": "does not get through to it",
    "open": "cannot open a file there",
    "write": "cannot write there",
    "read": "cannot read there",
}


def _words(pool: Pool) -> str:
    return STEPS.get(pool.use.step, "cannot use it")


CHECKS = (active, equal, usable)
