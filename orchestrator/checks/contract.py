"""Is the host what the last provision made of it?"""

from __future__ import annotations

import msgspec

from orchestrator.checks.registry import Case, check, failed, passed
from orchestrator.model.contract import SCHEMA, Contract, FileWish
from orchestrator.model.evidence import Evidence, FileState
from orchestrator.model.finding import Finding

PATH = "/etc/kvmfleet/contract.json"
PROVISION = "Run `kvmfleet provision` for this host."


def read(evidence: Evidence) -> Contract | str:
    """The contract, or why there is none."""
    slot = evidence.contract
    if slot.error or not slot.text:
        return slot.error or "empty"
    try:
        contract = msgspec.json.decode(slot.text, type=Contract)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        return str(error)
    if contract.schema != SCHEMA:
        return f"schema {contract.schema}, this kvmfleet reads {SCHEMA}"
    return contract


@check(
    "contract.present",
    "The host carries its contract",
    sections=("contract",),
    proves="The host was provisioned, and what it was told to be is on it.",
    how=f"{PATH} is a file that only root can write, and fits the schema.",
    todo=PROVISION,
)
def present(case: Case) -> Finding:
    contract = read(case.evidence)
    if contract == "absent":
        return failed(
            "no contract: the host is not provisioned, or somebody removed it",
            expected=PATH,
            seen="absent",
            fix=PROVISION,
        )
    if isinstance(contract, str):
        return failed(f"{PATH} is not usable: {contract}", expected="a contract", seen=contract, fix=PROVISION)
    return passed(f"provisioned as {contract.platform or 'an unnamed platform'}, profile {contract.profile}")


@check(
    "contract.packages",
    "The packages are installed",
    sections=("packages",),
    requires=("contract.present",),
    proves="Every package that the provision installed is still there.",
    how="One question to dpkg, rpm, pacman or apk for the names in the contract.",
    todo=PROVISION,
)
def packages(case: Case) -> Finding:
    wanted = case.wishes.packages
    missing = [name for name in wanted if not case.evidence.packages.get(name)]
    if missing:
        names = ", ".join(missing)
        return failed(
            f"not installed: {names}", expected=f"{len(wanted)} packages", seen=f"without {names}", fix=PROVISION
        )
    return passed(f"{len(wanted)} packages installed")


@check(
    "contract.files",
    "The managed files are unchanged",
    sections=("files",),
    requires=("contract.present",),
    proves="Nobody edited, removed or reowned a file that the provision wrote.",
    how="SHA-256, mode, owner and group of every file that the contract names.",
    todo=f"If the change was meant, put it into the inventory. {PROVISION}",
)
def files(case: Case) -> Finding:
    states = case.evidence.files
    changes = [
        f"{path} {why}"
        for path, wish in case.wishes.files.items()
        if (why := _change(wish, states.get(path, FileState())))
    ]
    if changes:
        return failed("; ".join(changes), expected="as provisioned", seen=f"{len(changes)} changed", fix=PROVISION)
    return passed(f"{len(case.wishes.files)} files as provisioned")


def _change(wish: FileWish, state: FileState) -> str:
    """What is different, in words; empty if nothing is."""
    if not state.exists:
        return "is missing"
    if wish.sha256 and state.sha256 != wish.sha256:
        return "has another content"
    if state.mode != wish.mode:
        return f"has mode {state.mode:04o}, not {wish.mode:04o}"
    if (state.owner, state.group) != (wish.owner, wish.group):
        return f"belongs to {state.owner}:{state.group}, not {wish.owner}:{wish.group}"
    return ""


CHECKS = (present, packages, files)
