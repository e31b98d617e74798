"""Are the storage pools there, as declared, and usable for guests?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from shlex import quote

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, undecided, warned
from orchestrator.model.contract import PoolWish
from orchestrator.model.evidence import Pool, Space
from orchestrator.model.finding import Finding

NOTHING = "the contract names no storage pool"
SOON_SHARE, SOON_MIB = 0.10, 64 << 10
"""Nearly full: less than this share and less than this many MiB are left."""
FULL_SHARE, FULL_MIB = 0.01, 1 << 10
"""Full: nearly full, and less than this share or less than this many MiB are left."""
IMAGES = "/var/lib/libvirt/images"
LABELS = re.compile(r":(s?virt_\w+|nfs_t|cifs_t|fusefs_t):")
"""Types of SELinux that guests get through: libvirt's own, and those that a boolean opens."""


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
            starts.append(f"virsh pool-{'start' if wish.active else 'destroy'} {quote(name)}")
        if pool.autostart != wish.autostart:
            problems.append(f"{name} {'starts' if pool.autostart else 'does not start'} with the host")
            starts.append(f"virsh pool-autostart {quote(name)}{'' if wish.autostart else ' --disable'}")
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


def _fill(left: int, whole: int, soon: int, full: int) -> str:
    """The status that so much of a whole is worth; `soon` and `full` are enough whatever the whole is."""
    if not whole or left >= soon or left >= whole * SOON_SHARE:
        return "pass"
    return "fail" if left < full or left < whole * FULL_SHARE else "warn"


def _worst(case: Case, problems: Mapping[str, str], fix: str, expected: str, fine: str) -> Finding:
    """What is wrong -> how bad. A lab lives on whatever disk there is: what is nearly full is only told."""
    if not problems:
        return passed(fine)
    if case.profile == "lab" and "fail" not in problems.values():
        return passed("; ".join(problems))
    say = failed if "fail" in problems.values() else warned
    return say("; ".join(problems), expected=expected, seen="less", fix=fix)


def _full(name: str, space: Pool | Space, files: bool) -> dict[str, str]:
    """Too little of its space, as a sentence -> how bad. Volumes that are no files may rightly take all of it."""
    left, whole = space.available_mib or 0, space.capacity_mib or 0
    status = _fill(left, whole, SOON_MIB, FULL_MIB)
    if status == "pass":
        return {}
    return {f"{name} has {left} of {whole} MiB left": status if files else "warn"}


def _without_inodes(name: str, space: Pool | Space) -> dict[str, str]:
    left, whole = space.inodes_free or 0, space.inodes or 0
    status = _fill(left, whole, 100_000, 100)
    return {f"{name} has {left} of {whole} inodes left": status} if status != "pass" else {}


ROOM = "Remove volumes that no guest needs, or enlarge the storage."


def _of_files(case: Case) -> dict[str, Pool]:
    """Pools that run and whose volumes are files, in a folder that was reached: storage.usable names the others."""
    wishes = case.wishes.pools
    return {
        name: pool
        for name, pool in _pools(case).items()
        if wishes[name].files and wishes[name].active and (pool.use.outcome == "works" or pool.inodes is not None)
    }


def _unread(pools: Mapping[str, Pool], values: Iterable[object]) -> Finding | None:
    """Where a value of a pool was not read, that is neither good nor bad."""
    missing = [name for name, value in zip(pools, values, strict=True) if value is None]
    return undecided(f"not read: {', '.join(missing)}", fix="Validate as root (become).") if missing else None


@check(
    "storage.space",
    "The storage pools have space left",
    sections=("storage",),
    requires=("storage.active",),
    proves="Disks of guests can grow: with a full pool QEMU pauses every guest that writes.",
    how="statvfs(2) of the folder where volumes are files, else what libvirt says. Less than 10 % and 64 GiB is a "
    "warning; less than 1 % or 1 GiB of that a failure, where volumes are files.",
    todo=ROOM,
)
def space(case: Case) -> Finding:
    if silent := _told(case):
        return silent
    pools = {
        name: pool
        for name, pool in _pools(case).items()
        if case.wishes.pools[name].active and (pool.capacity_mib is not None or pool.use.outcome != "broken")
    }
    if unread := _unread(pools, (pool.capacity_mib for pool in pools.values())):
        return unread
    problems: dict[str, str] = {}
    for name, pool in pools.items():
        problems |= _full(name, pool, case.wishes.pools[name].files)
    shares = [f"{name} {(pool.available_mib or 0) * 100 // (pool.capacity_mib or 1)} %" for name, pool in pools.items()]
    return _worst(case, problems, ROOM, "10 % or 64 GiB left", f"left: {', '.join(shares) or 'no pool is active'}")


@check(
    "storage.inodes",
    "The storage pools have inodes left",
    sections=("storage",),
    requires=("storage.active",),
    explained_by=("storage.space",),
    proves="New files can be made: a file system without inodes is full, whatever space it has.",
    how="statvfs(2) of the folders. File systems that make inodes as they need them (btrfs, xfs in part) tell none.",
    todo="`du --inodes -x -d 1 PATH` shows where so many files are.",
)
def inodes(case: Case) -> Finding:
    if silent := _told(case):
        return silent
    pools = _of_files(case)
    if not pools:
        return not_applicable("no folder of a pool was reached")
    if unread := _unread(pools, (pool.inodes for pool in pools.values())):
        return unread
    if not any(pool.inodes for pool in pools.values()):
        return not_applicable("these file systems make inodes as they need them")
    problems: dict[str, str] = {}
    for name, pool in pools.items():
        problems |= _without_inodes(name, pool)
    fix = "Run `du --inodes -x -d 1 PATH` to see where so many files are, and remove what nobody needs."
    return _worst(case, problems, fix, "10 % left", f"inodes left in {len(pools)} storage pools")


@check(
    "storage.usable",
    "QEMU can use the storage pools",
    sections=("storage",),
    requires=("storage.reach", "storage.active"),
    explained_by=("storage.equal", "storage.space", "storage.inodes"),
    proves="The user that QEMU runs as passes through to each pool of files, writes and reads a file there.",
    how="The collector makes a file without a name in the folder, gives it to that user as libvirt would, becomes the "
    "user, writes, reads. Nothing is left behind.",
    todo="The step that failed says what is in the way: `namei -l PATH` shows the modes on the way to a folder.",
)
def usable(case: Case) -> Finding:
    if silent := _told(case):
        return silent
    wished = {name: wish for name, wish in case.wishes.pools.items() if wish.active}
    problems = {
        name: f"{pool.use.user or 'QEMU'} {_words(pool)} ({pool.use.errno or 'not tried'})"
        for name, pool in _pools(case).items()
        if name in wished and wished[name].files and pool.use.outcome != "works"
    }
    if problems:
        paths = " ".join(quote(wished[name].path) for name in problems)
        fix = f"Run `namei -l {paths}` and let that user through, or provision with another owner or mode."
        told = "; ".join(f"{name}: {text}" for name, text in problems.items())
        return failed(told, expected="a file written and read", seen="not possible", fix=fix)
    return passed(f"{len(wished)} storage pools can be used")


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


@check(
    "storage.label",
    "SELinux lets guests through to the pools",
    sections=("storage", "security"),
    requires=("storage.active",),
    proves="A folder that is not libvirt's own has a type that guests may search.",
    how="The attribute security.selinux of each folder, where SELinux is on. AppArmor has no labels: libvirt "
    "writes each guest a profile with its files.",
    todo="`semanage fcontext -a -t virt_image_t 'PATH(/.*)?' && restorecon -R PATH`, as the role libvirt_storage does.",
)
def label(case: Case) -> Finding:
    if silent := _told(case):
        return silent
    if not case.evidence.security.selinux:
        return not_applicable("without SELinux folders have no labels")
    wishes = case.wishes.pools
    custom = {
        name: pool for name, pool in _of_files(case).items() if not f"{wishes[name].path}/".startswith(IMAGES + "/")
    }
    if not custom:
        return not_applicable("no pool of files is outside libvirt's own folder")
    wrong = {name: pool.label or "no label" for name, pool in custom.items() if not LABELS.search(f":{pool.label}:")}
    if wrong:
        paths = " ".join(wishes[name].path for name in wrong)
        return warned(
            "; ".join(f"{name} has {seen}" for name, seen in wrong.items()),
            expected="virt_image_t",
            seen=next(iter(wrong.values())),
            fix=f"{PROVISION} By hand: `semanage fcontext -a -t virt_image_t PATH && restorecon -R PATH` for {paths}.",
        )
    return passed(f"{len(custom)} folders have a type for guests")


@check(
    "storage.direct",
    "Disks can bypass the page cache",
    sections=("storage",),
    requires=("storage.active", "storage.usable"),
    proves="Disks with cache=none or io=native work in each pool of files; live migration wants them.",
    how="The file that is made in the folder to try it is opened once more with O_DIRECT.",
    todo="Put disks on another file system: tmpfs before Linux 6.6 and some others cannot. Or give the guests "
    "cache=writeback.",
)
def direct(case: Case) -> Finding:
    if silent := _told(case):
        return silent
    pools = _of_files(case)
    if not pools:
        return not_applicable("no folder of a pool was reached")
    if unread := _unread(pools, (pool.use.direct for pool in pools.values())):
        return unread
    unable = [name for name, pool in pools.items() if not pool.use.direct]
    if unable:
        names = ", ".join(unable)
        fix = "Put disks on another file system, or give the guests cache=writeback."
        return warned(f"no O_DIRECT in {names}", expected="opens with O_DIRECT", seen="EINVAL", fix=fix)
    return passed(f"O_DIRECT works in {', '.join(pools)}")


@check(
    "storage.volume",
    "libvirt makes and deletes volumes",
    sections=("storage",),
    requires=("storage.active",),
    explained_by=("storage.usable", "storage.space"),
    proves="Each pool that is active takes a new volume, and lets it go.",
    how="Only with --active: a volume of 4 MiB is made through libvirt and deleted. Volumes of iscsi, scsi, mpath and "
    "disk are made by others.",
    todo="The finding has libvirt's reason. A volume that was left is called kvmfleet-proof-...: delete it with virsh.",
)
def volume(case: Case) -> Finding:
    if silent := _told(case):
        return silent
    found = {name: pool.volume for name, pool in _pools(case).items() if pool.active}
    tried = {name: volume for name, volume in found.items() if volume.outcome != "skipped"}
    if not tried:
        reasons = {volume.detail for volume in found.values()} - {""}
        return not_applicable("; ".join(sorted(reasons)) or "only with --active")
    broken = [f"{name}: {volume.step}: {volume.detail}" for name, volume in tried.items() if volume.outcome == "broken"]
    if broken:
        fix = "Try it with `virsh vol-create-as POOL NAME 4M`; libvirt's log says more."
        return failed(
            "; ".join(broken), expected="made and deleted", seen=f"{len(broken)} of {len(tried)} not", fix=fix
        )
    return passed(f"a volume was made and deleted in {', '.join(tried)}")


@check(
    "storage.images",
    "There is room for disks of guests",
    sections=("storage",),
    warns_in=("lab",),
    proves="Where no pool was declared, libvirt's own folder has space and inodes left.",
    how=f"statvfs(2) of {IMAGES}, with the limits of storage.space and storage.inodes.",
    todo=ROOM,
)
def images(case: Case) -> Finding:
    if case.wishes.pools:
        return not_applicable("the contract names storage pools")
    found = case.evidence.storage.images
    if found is None:
        return not_applicable(f"there is no {IMAGES}")
    if found.capacity_mib is None:
        return undecided(f"{IMAGES} does not tell its space", fix=f"Run `df {IMAGES}`: a file server may be gone.")
    problems = _full(IMAGES, found, True) | _without_inodes(IMAGES, found)
    fine = f"{found.available_mib} of {found.capacity_mib} MiB left"
    return _worst(case, problems, ROOM, "10 % or 64 GiB left", fine)


CHECKS = (active, equal, space, inodes, usable, label, direct, volume, images)
