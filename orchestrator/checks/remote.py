"""Is libvirt reached from other machines over TLS, whom does it let in, and does it reach them?"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from shlex import quote

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.registry import (
    Case,
    check,
    differences,
    failed,
    not_applicable,
    passed,
    undecided,
    warned,
)
from orchestrator.model.contract import CertificateWish, SaslWish
from orchestrator.model.evidence import Certificate, Sasl, Unit
from orchestrator.model.finding import Finding

DAY_S = 86400
EARLY_DAYS = 30
ROTATE = "Run `kvmfleet pki rotate` for this host."
OWN = "Put a valid certificate where libvirt_remote_certificate names one, then run `kvmfleet provision`."
NO_TLS = "no TLS is asked for"


@check(
    "remote.sockets",
    "libvirt listens for TLS",
    sections=("libvirt",),
    requires=("libvirt.daemon",),
    proves="The socket for TLS listens, and comes back after a boot.",
    how="ActiveState and UnitFileState of the contract's sockets for TLS.",
    todo="A socket does not start while its service runs: `systemctl stop libvirtd.service && systemctl enable --now "
    "libvirtd-tls.socket`; guests go on. Provisioning does the same.",
)
def sockets(case: Case) -> Finding:
    wish, units = case.wishes.remote, case.evidence.libvirt.units
    if not wish.sockets:
        return not_applicable(NO_TLS)
    problems = []
    for name in wish.sockets:
        unit = units.get(name, Unit())
        if unit.load in ("", "not-found"):
            problems.append(f"this libvirt has no {name}")
        elif unit.active != "active":
            problems.append(f"{name} does not listen")
        elif unit.enabled != "enabled":
            problems.append(f"{name} is not enabled")
    if problems:
        return failed("; ".join(problems), expected="listening, enabled", seen="; ".join(problems), fix=PROVISION)
    return passed(f"{', '.join(wish.sockets)} listens, port {wish.port}")


@check(
    "remote.certificate",
    "The certificates for TLS are valid, and for long enough",
    sections=("remote",),
    requires=("contract.present",),
    explained_by=("clock.offset",),
    proves="libvirt and QEMU each have a certificate of the fleet's CA, for every name of this host, with its key, "
    "which nobody else can read, and which is valid for a month or more.",
    how="OpenSSL shakes hands with itself, with the host's own files on both ends; names, dates and the modes of keys "
    "are compared with the contract. A certificate with a life below three months may use up two thirds of it.",
    todo="`kvmfleet provision` renews in the last third of a life, `kvmfleet pki rotate` at once. A key that others "
    "could read is no secret any more: rotate.",
)
def certificate(case: Case) -> Finding:
    wish, found, now_s = case.wishes.remote, case.evidence.remote.certificates, case.evidence.collected_at_s
    if not wish.certificates:
        return not_applicable(NO_TLS)
    fix = ROTATE if wish.ca_sha256 else OWN
    pairs = [(one, found.get(one.certificate, Certificate(error="not looked at"))) for one in wish.certificates]
    for one, seen in pairs:
        if problem := _problem(one, seen, now_s):
            return failed(f"{one.certificate} {problem}", expected="valid", seen=problem, fix=fix)
        if missing := [name for name in wish.names if _canonical(name) not in map(_canonical, seen.names)]:
            summary = f"{one.certificate} is not for {', '.join(missing)}"
            return failed(summary, expected=", ".join(wish.names), seen=", ".join(seen.names), fix=PROVISION)
        if wish.ca_sha256 and seen.ca_sha256 != wish.ca_sha256:
            summary = f"{one.ca} is not the CA that this host was given"
            return failed(summary, expected=wish.ca_sha256, seen=seen.ca_sha256, fix=PROVISION)
    first = min((seen for _, seen in pairs), key=lambda seen: seen.not_after_s)
    left_days = int((first.not_after_s - now_s) // DAY_S)
    until = f"until {_date(first.not_after_s)}, {left_days} days"
    if first.not_after_s - now_s < min(EARLY_DAYS * DAY_S, (first.not_after_s - first.not_before_s) / 3):
        soon = PROVISION if wish.ca_sha256 else OWN
        return warned(f"valid only {until}", expected=f"{EARLY_DAYS} days", seen=f"{left_days} days", fix=soon)
    return passed(f"{len(pairs)} certificates, valid {until}")


def _problem(wish: CertificateWish, seen: Certificate, now_s: float) -> str:
    """What keeps a program from using its certificate, or lets others use it."""
    if 0 < seen.not_after_s < now_s:
        return f"expired on {_date(seen.not_after_s)}"
    if seen.not_before_s > now_s:
        return f"is not valid before {_date(seen.not_before_s)}: look at the host's clock"
    if seen.error:
        return f"cannot be used: {seen.error}"
    if seen.key_mode & 0o077:
        return f"has a key that others can read: {wish.key} has mode {seen.key_mode:04o}"
    if seen.key_owner != wish.owner:
        return f"has a key that {wish.owner} cannot read: {wish.key} belongs to {seen.key_owner}"
    return ""


def _date(seconds: float) -> str:
    """Of a clock that a host may have set to anything."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"


def _canonical(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


@check(
    "remote.reach",
    "TLS works, to this host and from it",
    sections=("remote",),
    requires=("remote.sockets", "remote.certificate"),
    explained_by=("libvirt.connect",),
    proves="This host's libvirt lets the host's own certificate in, and so does the libvirt of every peer: guests can "
    "migrate there.",
    how="A whole handshake with the host's certificate, from this host to its own port and to at most 16 of its "
    "peers, those behind it in the list. libvirt's answer says whether it lets this certificate in. This wakes an idle "
    "daemon.",
    todo="Refused: libvirt does not listen there. No answer: a firewall, TCP port 16514. Not accepted: "
    "the peer has another CA, or another tls_allowed_dn_list. Names: libvirt_remote_names of the peer.",
)
def reach(case: Case) -> Finding:
    wish, found = case.wishes.remote, case.evidence.remote.peers
    if not wish.sockets:
        return not_applicable(NO_TLS)
    own = wish.names[0] if wish.names else ""
    mine = found.get(own)
    if mine and mine.error:
        fix = "Read `journalctl -u libvirtd -u virtproxyd`; then run `kvmfleet provision` for this host."
        return failed(f"libvirt does not serve TLS: {mine.error}", expected="an answer", seen=mine.error, fix=fix)
    deaf = {name: peer.error for name, peer in found.items() if peer.error}
    if deaf:
        problems = "; ".join(f"{name}: {error}" for name, error in sorted(deaf.items()))
        fix = f"Look at {', '.join(sorted(deaf))}: is it provisioned with tls, and TCP port {wish.port} open from here?"
        return warned(f"not reached over TLS: {problems}", expected="an answer", seen=problems, fix=fix)
    shown = {case.evidence.remote.certificates.get(one.certificate, Certificate()).sha256 for one in wish.certificates}
    if mine and mine.sha256 not in shown:
        names = " ".join(quote(name.replace("-tls.socket", "")) for name in wish.sockets)
        fix = f"Run `virt-admin server-update-tls {names}`, or restart that service."
        return warned("the daemon uses an older certificate than the one in its file", fix=fix)
    return passed(f"libvirt answers over TLS; peers asked: {len(found) - bool(mine)} of {len(wish.peers)}")


@check(
    "remote.sasl",
    "libvirt asks for a password",
    sections=("remote",),
    requires=("remote.reach",),
    explained_by=("libvirt.settings", "contract.packages"),
    proves="Over TLS libvirt lets in nobody without a password, by the mechanism that was declared; the users are "
    "those that were declared, and only root reads what is stored of their passwords.",
    how="The daemon itself says, before any login, how it authenticates and with which mechanisms; a login that is "
    "begun and not finished, which takes no password, shows that it finds the first user. The names in the database "
    "and the SASL library's file are compared with the contract.",
    todo="`kvmfleet provision` writes the database anew. One that others could read: give its users new passwords. A "
    "user whom the daemon does not find: the host has another name since, and users are stored below the old one.",
)
def sasl(case: Case) -> Finding:
    wish, found = case.wishes.remote.sasl, case.evidence.remote.sasl
    if not wish.mechanisms:
        return not_applicable("no SASL is asked for")
    if found is None:
        return undecided("SASL was not looked at", fix="Run `kvmfleet validate` again; if it stays, look at the host.")
    exposed = _exposed(wish, found)
    if found.unread and not exposed:
        again = f"Run `sasldblistusers2 -f {quote(wish.database)}` on the host."
        return undecided(f"the users in {wish.database} could not be listed: {found.unread}", fix=again)
    if problem := exposed or _declared(wish, found) or _daemon(wish, found):
        return failed(
            problem, expected=f"{', '.join(wish.mechanisms)} for the users declared", seen=problem, fix=PROVISION
        )
    if found.knows is None:
        journal = "Read `journalctl -u libvirtd -u virtproxyd` on the host."
        return undecided(f"libvirt did not tell how it asks for passwords: {found.silent}", fix=journal)
    return passed(f"libvirt asks for a password, {', '.join(wish.mechanisms)}; users: {len(wish.users)}")


def _exposed(wish: SaslWish, found: Sasl) -> str:
    """Who else reads the database, or that there is none."""
    state = found.database
    if not state.exists:
        return f"there is no {wish.database}"
    if state.mode & 0o077 or state.owner != "root":
        return f"{wish.database} can be read by others: mode {state.mode:04o}, owner {state.owner}"
    return ""


def _declared(wish: SaslWish, found: Sasl) -> str:
    """What in the files is not as it was declared."""
    if missing := sorted(set(wish.users) - set(found.users)):
        return f"not in {wish.database}, and cannot log in: {', '.join(missing)}"
    if strangers := sorted(set(found.users) - set(wish.users)):
        return f"in {wish.database}, and not declared: {', '.join(strangers)}"
    wanted = {"mech_list": " ".join(wish.mechanisms), "sasldb_path": wish.database}
    have = {**found.settings, "mech_list": found.settings.get("mech_list", "").upper()}
    wrong = differences(wanted, have)
    return f"{wish.configuration}: {'; '.join(wrong)}" if wrong else ""


def _daemon(wish: SaslWish, found: Sasl) -> str:
    """What is wrong with what the daemon does."""
    if found.asks and found.asks != ("sasl",):
        return "libvirt asks for no password: a certificate is enough"
    if found.asks and set(found.mechanisms) != set(wish.mechanisms):
        offered = ", ".join(found.mechanisms) or f"no mechanism ({found.silent})"
        return f"libvirt offers {offered}, not {', '.join(wish.mechanisms)}"
    if found.knows is False:
        return f"libvirt does not find the user {wish.users[0]}" if wish.users else "libvirt finds no user"
    return ""


CHECKS = (sockets, certificate, reach, sasl)
