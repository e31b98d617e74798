"""What a fault is, and the programs that bring it on and take it back.

Both run as root on the host, read by sh from its standard input. A program is one compound command: sh executes nothing
of it before it has read all of it, so half a program, of a connection that broke, does nothing at all.
"""

from __future__ import annotations

import shlex

import msgspec

__all__ = ["Fault", "heal_program", "inject_program"]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One way in which a host breaks, and the check that has to name it.

    `needs` are places in the contract, such as pools/*/path, of which the first thing there is the script's $1, the
    next place's its $2; the healing script gets the same words, whatever the contract says by then. That script runs
    after an injection that failed half way as well, so it must not mind what was not broken.
    """

    id: str
    says: str  # what is wrong then, in one sentence
    check: str
    inject: str
    heal: str
    needs: tuple[str, ...] = ()
    providers: tuple[str, ...] = ("container", "vm")
    why: str = ""  # not both providers
    systems: tuple[str, ...] = ("debian-12", "debian-13")
    depth: str = "proof"  # how deep a validation has to look to see it: --boot


# keep FILE...: a copy for `back`. hide FILE...: the same, and it is gone. back FILE...: as it was, if it was kept.
_VERBS = """\
set -eu
kept=/var/lib/kvmfleet-drill/{id}
keep() {{
  for file; do
    [ -e "$kept$file" ] || [ -L "$kept$file" ] && continue
    mkdir -p "$kept${{file%/*}}"
    cp -a "$file" "$kept$file.part"
    mv -T "$kept$file.part" "$kept$file"
  done
}}
hide() {{
  for file; do
    mkdir -p "$kept${{file%/*}}"
    mv -T "$file" "$kept$file"
  done
}}
back() {{
  for file; do
    [ -e "$kept$file" ] || [ -L "$kept$file" ] || continue
    rm -rf "$file"
    mv -T "$kept$file" "$file"
  done
}}
"""

_WISH = """\
wish() {
  python3 -c '
import json, sys
found = json.load(open("/etc/kvmfleet/contract.json"))
for key in sys.argv[1].split("/"):
    if key == "*":
        found = next(iter(found.values() if isinstance(found, dict) else found), {})
    else:
        found = found.get(key, {})
if isinstance(found, (dict, list)):
    found = next(iter(found), "")
print(found or sys.exit("the contract of this host has no " + sys.argv[1]))' "$1"
}
"""


def inject_program(fault: Fault) -> str:
    """Breaks the host, or says on stderr why it cannot; exits 0 when it is broken."""
    words = [f"word{number}" for number in range(len(fault.needs))]
    look = [f"{word}=$(wish {shlex.quote(need)})" for word, need in zip(words, fault.needs, strict=True)]
    given = " ".join(f'"${word}"' for word in words)
    start = ["set --", *look, f"set -- {given}", 'mkdir -p -m 0711 "$kept"', 'printf "%s\\n" "$@" > "$kept/words"']
    return _program(fault, [*([_WISH] if fault.needs else []), *start, fault.inject])


def heal_program(fault: Fault) -> str:
    """Takes back what an injection did, whole or in part; does nothing where none began."""
    start = """\
[ -e "$kept/words" ] || exit 0
set --
while IFS= read -r word; do set -- "$@" "$word"; done < "$kept/words"
"""
    return _program(fault, [start, fault.heal, 'rm -rf "$kept"\nrmdir --ignore-fail-on-non-empty "${kept%/*}"'])


def _program(fault: Fault, parts: list[str]) -> str:
    """Commands of it that read would otherwise read the rest of it."""
    return "{\n" + "\n".join([_VERBS.format(id=fault.id), *parts]) + "\n} </dev/null\n"
