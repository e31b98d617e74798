#!/usr/bin/python
"""Guards ports of the host: some are open to named networks, some to nobody, and no other port is touched.

Through firewalld where it runs, otherwise through a table of our own in nftables, beside whatever else filters there.
ufw, where it is installed, is told to let the sources in.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import commands, port_rules
from ansible_collections.kvmfleet.host.plugins.module_utils.port_rules import OPENRC_FILE, POLICY_FILE, RULES_FILE
from ansible_collections.kvmfleet.host.plugins.module_utils.record import RecordError, open_record

DOCUMENTATION = """
module: port_guard
short_description: Guards ports of a host by nftables or firewalld
description:
  - Opens TCP ports of the host to named networks, and closes them and others to everybody else but the host itself.
  - Neither ports that are not named nor forwarded traffic, such as that of guests and containers, are touched.
  - With nftables the rules are in a table of their own, C(inet kvmfleet). A systemd unit loads it at boot, and again
    after every start and reload of C(nftables.service).
  - With firewalld they are in a policy named kvmfleet, which a reload keeps.
  - Where ufw is installed it gets rules that let the sources in, since it would drop what the table lets pass.
  - What this module made for another backend, or before, is taken back.
options:
  backend:
    description:
      - What filters. V(auto) is firewalld where it runs, and nftables otherwise. V(none) takes back what was made.
    type: str
    choices: [auto, nftables, firewalld, none]
    default: auto
  sources:
    description: Networks or addresses to which the ports of O(opened) are open.
    type: list
    elements: str
    default: []
  opened:
    description: Ports or ranges such as 49152-49215 that are open to O(sources), and to nobody else.
    type: list
    elements: str
    default: []
  closed:
    description: Ports or ranges that are open to nobody but the host itself.
    type: list
    elements: str
    default: []
author:
  - kvmfleet developers (@kvmfleet)
"""

EXAMPLES = """
- name: Let the fleet migrate guests to this host
  kvmfleet.host.port_guard:
    sources: [192.0.2.0/24, "2001:db8::/64"]
    opened: [16514, 49152-49215]
    closed: [16509, 5900-6923]
"""

RETURN = """
backend:
  description: What filters now.
  returned: always
  type: str
done:
  description: What was changed, or would be, one sentence each.
  returned: always
  type: list
  elements: str
"""

UNIT = "kvmfleet-firewall.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
COMMENT = "kvmfleet"

# nftables.service begins with `flush ruleset`, when it starts and when it reloads: this follows it each time.
UNIT_TEXT = f"""\
# {port_rules.HEADER}
[Unit]
Description=Ports of KVM hosts that only the fleet may reach
Wants=network-pre.target
Before=network-pre.target shutdown.target
After=nftables.service
ReloadPropagatedFrom=nftables.service
PartOf=nftables.service
Conflicts=shutdown.target
DefaultDependencies=no

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={{nft}} --file {RULES_FILE}
ExecReload={{nft}} --file {RULES_FILE}
ExecStop=-{{nft}} delete table inet {port_rules.TABLE}

[Install]
WantedBy=multi-user.target nftables.service
"""


class GuardError(Exception):
    """What cannot be done, and what to do about it."""


class Host(NamedTuple):
    """Where this touches the host; tests put something else there. `run` gives an exit code, output and complaint."""

    run: Any
    record: Any
    check: bool
    done: list[str]
    root: str = ""
    which: Any = commands.which

    def read(self, path: str) -> str:
        try:
            with open(self.root + path, encoding="utf-8") as stream:
                return stream.read()
        except FileNotFoundError:
            return ""

    def exists(self, path: str) -> bool:
        return os.path.exists(self.root + path)

    def do(self, sentence: str) -> bool:
        """Says what is about to be done; whether to do it."""
        self.done.append(sentence)
        return not self.check

    def call(self, *argv: str, given: str = "") -> str:
        """The output. Raises GuardError when the command complains."""
        code, out, complaint = self.run(list(argv), given)
        if code:
            hint = ". If somebody flushed its rules, `ufw reload` brings them back" if argv[0] == "ufw" else ""
            raise GuardError(f"`{' '.join(argv)}` ended with {code}: {complaint.strip() or out.strip()}{hint}")
        return str(out)

    def put(self, path: str, text: str) -> bool:
        """Makes a file of ours have this text; whether it had not. It is noted before it is written."""
        if self.read(path) == text:
            return False
        if self.do(f"{path} is written"):
            self.record.note("file", path)
            self.record.save()
            os.makedirs(os.path.dirname(self.root + path), 0o755, exist_ok=True)
            with open(self.root + path + ".kvmfleet", "w", encoding="utf-8") as stream:
                os.fchmod(stream.fileno(), 0o644)
                stream.write(text)
            os.replace(stream.name, self.root + path)
        return True

    def drop(self, path: str) -> bool:
        """Removes a file of ours; whether there was one."""
        if not self.record.holds("file", path) or self.record.before("file", path) is not None:
            return False
        there = self.exists(path)
        if there and self.do(f"{path} is removed"):
            os.unlink(self.root + path)
        if not self.check:
            self.record.forget("file", path)
        return there


def settle(host: Host, backend: str, rules: Any) -> str:
    """Makes the backend have the rules and takes back what another has; which backend it was.

    Raises:
        GuardError: a command complained, or is not there.
    """
    chosen = backend if backend != "auto" else "firewalld" if _firewalld_runs(host) else "nftables"
    if chosen == "firewalld":
        _firewalld(host, rules)
    elif host.record.holds("file", POLICY_FILE) and host.drop(POLICY_FILE) and not host.check:
        _reload_firewalld(host)
    if chosen == "nftables":
        _nftables(host, rules)
    else:
        _no_nftables(host)
    _ufw(host, set(port_rules.ufw_rules(rules)) if chosen != "none" else set())
    return chosen


# --- nftables


def _nftables(host: Host, rules: Any) -> None:
    nft = host.which("nft")
    if not nft and not host.check:
        raise GuardError("There is no nft on this host. Install the package nftables, or set the backend to none.")
    systemd, text = host.exists("/run/systemd/system"), port_rules.table(rules)
    if nft:
        host.call("nft", "--check", "--file", "-", given=text)
    host.put(RULES_FILE if systemd else OPENRC_FILE, text)
    if systemd and host.put(UNIT_FILE, UNIT_TEXT.format(nft=nft)) and not host.check:
        host.call("systemctl", "daemon-reload")
    standing = host.run(["systemctl", "is-enabled", UNIT], "")[1].strip() if systemd else "enabled"
    if standing != "enabled" and host.do(f"{UNIT} is enabled"):
        host.record.note("unit", UNIT)  # ours, so nothing was there before
        host.call("systemctl", "enable", UNIT)
    if (not nft or _live(host) != port_rules.promised(rules)) and host.do("the rules are loaded"):
        host.call("nft", "--file", "-", given=text)
    active = not systemd or host.run(["systemctl", "is-active", UNIT], "")[1].strip() == "active"
    if not active and host.do(f"{UNIT} is started"):
        host.call("systemctl", "start", UNIT)


def _live(host: Host) -> Any:
    # nft(8) ends with 1 where there is no such table
    code, out, complaint = host.run(["nft", "--json", "list", "table", "inet", port_rules.TABLE], "")
    if code and "No such file" in complaint:
        return None
    try:
        return port_rules.summary(json.loads(out))
    except (ValueError, KeyError, TypeError) as error:
        raise GuardError(f"`nft --json list table` says what nobody understands: {complaint or out[:200]}") from error


def _no_nftables(host: Host) -> None:
    ours = [path for path in (RULES_FILE, OPENRC_FILE, UNIT_FILE) if host.record.holds("file", path)]
    if not ours:
        return
    if host.exists(UNIT_FILE) and host.do(f"{UNIT} is stopped"):
        host.call("systemctl", "disable", "--now", UNIT)
    removed = [path for path in ours if host.drop(path)]
    if removed and not host.check:
        # nft(8) ends with 1 where there is no such table, which is what we want
        host.run(["nft", "delete", "table", "inet", port_rules.TABLE], "")
        if host.exists("/run/systemd/system"):
            host.call("systemctl", "daemon-reload")
        host.record.forget("unit", UNIT)


# --- firewalld


def _firewalld_runs(host: Host) -> bool:
    # firewall-cmd(1) ends with 252 where the daemon does not run
    return bool(host.which("firewall-cmd")) and host.run(["firewall-cmd", "--state"], "")[0] == 0


def _firewalld(host: Host, rules: Any) -> None:
    running = _firewalld_runs(host)
    if not running and not host.check:
        raise GuardError("firewalld does not run on this host. Start it, or set the backend to auto or nftables.")
    before = host.read(POLICY_FILE)
    written = host.put(POLICY_FILE, port_rules.policy(rules))
    if running and not written:
        code, out, _complaint = host.run(["firewall-cmd", "--policy", port_rules.TABLE, "--list-rich-rules"], "")
        written = bool(code) or sorted(out.split("\n")[:-1]) != port_rules.rich_rules(rules)
    if written and host.do("firewalld reads its policies"):
        try:
            host.call("firewall-cmd", "--check-config")
            _reload_firewalld(host)
        except GuardError:
            if not before:
                host.drop(POLICY_FILE)
            raise


def _reload_firewalld(host: Host) -> None:
    if _firewalld_runs(host):
        host.call("firewall-cmd", "--reload")


# --- ufw


ADDED = re.compile(r"^ufw allow from (\S+) to any port (\S+) proto tcp comment '" + COMMENT + "'$", re.MULTILINE)


def _ufw(host: Host, wanted: set[tuple[str, str]]) -> None:
    if not host.which("ufw"):
        return
    found = {(ports, source) for source, ports in ADDED.findall(host.call("ufw", "show", "added"))}
    for ports, source in sorted(wanted - found):
        if host.do(f"ufw lets {source} in to {ports}"):
            host.record.note("ufw", f"allow proto tcp from {source} to any port {ports}")
            host.call("ufw", "allow", "proto", "tcp", "from", source, "to", "any", "port", ports, "comment", COMMENT)
    for ports, source in sorted(found - wanted):
        if host.do(f"ufw no longer lets {source} in to {ports}"):
            host.call("ufw", "--force", "delete", "allow", "proto", "tcp", "from", source, "to", "any", "port", ports)
            host.record.forget("ufw", f"allow proto tcp from {source} to any port {ports}")


def main() -> None:
    lists = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "backend": {"type": "str", "choices": ["auto", "nftables", "firewalld", "none"], "default": "auto"},
            "sources": lists,
            "opened": lists,
            "closed": lists,
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        rules = port_rules.guard(given["sources"], given["opened"], given["closed"])
        with open_record(check=module.check_mode) as record:
            host = Host(commands.run, record, module.check_mode, [])
            before = host.read(RULES_FILE), host.read(POLICY_FILE)
            backend = settle(host, given["backend"], rules)
    except (GuardError, RecordError, port_rules.RulesError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    diff = _diff(backend, rules, before) if host.done else []
    module.exit_json(changed=bool(host.done), backend=backend, done=host.done, diff=diff)


def _diff(backend: str, rules: Any, before: tuple[str, str]) -> list[dict[str, str]]:
    texts = (
        (RULES_FILE, before[0], port_rules.table(rules) if backend == "nftables" else ""),
        (POLICY_FILE, before[1], port_rules.policy(rules) if backend == "firewalld" else ""),
    )
    return [
        {"before_header": path, "after_header": path, "before": old, "after": new}
        for path, old, new in texts
        if old != new
    ]


if __name__ == "__main__":
    main()
