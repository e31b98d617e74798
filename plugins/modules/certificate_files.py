#!/usr/bin/python
"""Makes keys on a host and puts certificates where libvirt and QEMU look for them. A key never leaves the host."""

from __future__ import annotations

import os
import pwd
import shutil
import ssl
import stat
import tempfile
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import commands, restore
from ansible_collections.kvmfleet.host.plugins.module_utils.record import (
    Record,
    RecordError,
    file_before,
    open_record,
)

DOCUMENTATION = """
module: certificate_files
short_description: Makes keys on a host and puts certificates where libvirt and QEMU look for them
description:
  - The half of M(kvmfleet.host.certificates) that works on the host. Playbooks call that one.
  - Keys are made here and never leave the host.
  - What was in the place of a file before is noted in the host's record, and put back with O(step=remove).
author:
  - kvmfleet developers (@kvmfleet)
options:
  step:
    description:
      - V(look) tells what is there, V(request) makes keys and requests for certificates, V(install) puts certificates
        with their keys in their places, V(remove) gives back the places.
    type: str
    choices: [look, request, install, remove]
    required: true
  stores:
    description: The places of certificates with one key, one entry for each program that uses them.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What the store is for.
        type: str
        required: true
      ca:
        description: Where certificates of the CA go.
        type: list
        elements: str
        required: true
      certificate:
        description: Where the certificate goes.
        type: list
        elements: str
        required: true
      key:
        description: Where the key goes.
        type: list
        elements: str
        required: true
      owner:
        description: Who may read the keys.
        type: str
        default: root
  source:
    description: Files of the host with a certificate of somebody else's, with the keys ca, certificate and key.
    type: dict
    default: {}
  ca:
    description: The CA's certificates in PEM form, for O(step=install).
    type: str
    default: ""
  certificates:
    description: Name of a store to its new certificate in PEM form, for O(step=install).
    type: dict
    default: {}
"""

EXAMPLES = """
- name: See what is there
  kvmfleet.host.certificate_files:
    step: look
    stores:
      - name: libvirt
        ca: [/etc/pki/CA/cacert.pem]
        certificate: [/etc/pki/libvirt/servercert.pem]
        key: [/etc/pki/libvirt/private/serverkey.pem]
"""

RETURN = """
stores:
  description: Name of a store to the text of its files, whether the key fits, and whether owner and mode are right.
  returned: with look
  type: dict
source:
  description: The same of the files in O(source).
  returned: with look
  type: dict
unread:
  description: Whether a run ended before the daemons read what it wrote.
  returned: with look
  type: bool
lacks_tls:
  description: Whether a libvirt is installed that has no socket for TLS.
  returned: with look
  type: bool
requests:
  description: Name of a store to a request for its certificate in PEM form.
  returned: with request
  type: dict
"""

PENDING = "/var/lib/kvmfleet/pki"  # keys whose certificates are still to come; there until the daemons have read these
UNITS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
SERVERS = {"libvirtd": "libvirtd-tls.socket", "virtproxyd": "virtproxyd-tls.socket"}
KEY_BITS = "3072"  # RSA, because libvirt and QEMU want a usage that elliptic keys have not
LARGEST = 1 << 20


class FilesError(Exception):
    """What cannot be done, and what to do about it."""


Store = dict[str, Any]


def run(argv: list[str]) -> tuple[int, str, str]:
    try:
        return commands.run(argv)
    except OSError as error:
        raise FilesError(f"{argv[0]} cannot be started: {error.strerror}. Install {argv[0]}.") from error


def read(path: str) -> str | None:
    """The text of a file, None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return None


# --- look


def look(stores: list[Store], source: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"stores": {store["name"]: look_at(store) for store in stores}, "lacks_tls": lacks_tls()}
    found["unread"] = os.path.exists(PENDING)
    if source:
        certificate, key = source["certificate"], source["key"]
        found["source"] = {
            "ca": read(source["ca"]),
            "certificate": read(certificate),
            "key": read(key) is not None,
            "fits": fits(certificate, key),
            "private": os.path.exists(key) and not os.stat(key).st_mode & (stat.S_IRWXG | stat.S_IRWXO),
        }
    return found


def look_at(store: Store) -> dict[str, Any]:
    return {
        "ca": [read(path) for path in store["ca"]],
        "certificate": [read(path) for path in store["certificate"]],
        "fits": all(fits(*pair) for pair in zip(store["certificate"], store["key"])),  # noqa: B905 - Python 3.10
        "right": all(is_right(path, *wanted) for path, wanted in modes(store)),
    }


def fits(certificate: str, key: str) -> bool:
    """Whether the key is the certificate's. A key with a passphrase fits none."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        return False
    return True


def modes(store: Store) -> Any:
    """Every file with its owner and its mode."""
    yield from ((path, ("root", 0o644)) for path in (*store["ca"], *store["certificate"]))
    yield from ((path, (store["owner"], 0o400)) for path in store["key"])


def is_right(path: str, owner: str, mode: int) -> bool:
    try:
        found = os.stat(path)
        return (found.st_uid, stat.S_IMODE(found.st_mode)) == (pwd.getpwnam(owner).pw_uid, mode)
    except (OSError, KeyError):
        return False


def lacks_tls() -> bool:
    """Whether there is a libvirt whose package left out the socket for TLS."""
    there = [f"{daemon}.service" for daemon in SERVERS if _unit(f"{daemon}.service")]
    return bool(there) and not any(_unit(socket) for socket in SERVERS.values())


def _unit(name: str) -> bool:
    return any(os.path.exists(f"{folder}/{name}") for folder in UNITS)


# --- request


def request(stores: list[Store], folder: str = PENDING) -> dict[str, str]:
    """A new key for each store, which waits for its certificate where only root can read it."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    return {store["name"]: _request(f"{folder}/{store['name']}.key") for store in stores}


def _request(key: str) -> str:
    with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"):
        os.chmod(key, 0o600)
    new = ["-newkey", f"rsa:{KEY_BITS}", "-nodes", "-keyout", key]
    code, out, complaint = run(["openssl", "req", "-new", *new, "-subj", "/CN=kvmfleet"])
    if code or "BEGIN CERTIFICATE REQUEST" not in out:
        raise FilesError(f"`openssl req` ended with {code}: {complaint.strip()}")
    return out


# --- install


def install(
    stores: list[Store],
    source: dict[str, str],
    ca: str,
    certificates: dict[str, str],
    record: Record,
    reload: Callable[[], None],
) -> list[str]:
    """What was written. A certificate and its key are looked at together before either is put in its place."""
    os.makedirs(PENDING, mode=0o700, exist_ok=True)
    written = []
    for store in stores:
        if store["name"] in certificates:
            key = source.get("key") or f"{PENDING}/{store['name']}.key"
            _refuse_strangers(certificates[store["name"]], key)
            for path in store["key"]:
                written += put(path, read(key) or "", store["owner"], 0o400, record)
            for path in store["certificate"]:
                written += put(path, certificates[store["name"]], "root", 0o644, record)
        for path in store["ca"]:
            written += put(path, ca, "root", 0o644, record)
        for path, (owner, mode) in modes(store):
            if not is_right(path, owner, mode):
                _own(path, owner, mode)
                written.append(path)
    reload()
    shutil.rmtree(PENDING, ignore_errors=True)
    return written


def _refuse_strangers(certificate: str, key: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as stream:
        stream.write(certificate)
        stream.flush()
        if not fits(stream.name, key):
            raise FilesError(f"The new certificate does not belong to the key {key}. Run it again.")


def put(path: str, text: str, owner: str, mode: int, record: Record) -> list[str]:
    """Writes a file whole or not at all, and only where its text differs."""
    if read(path) == text:
        return []
    _folder(os.path.dirname(path), owner, record)
    record.note("file", path, file_before(path))
    record.save()
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".kvmfleet")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
        _own(temporary, owner, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if os.path.exists("/usr/sbin/restorecon") and os.path.exists("/sys/fs/selinux/enforce"):
        run(["restorecon", path])
    return [path]


def _own(path: str, owner: str, mode: int) -> None:
    try:
        user = pwd.getpwnam(owner)
    except KeyError as error:
        raise FilesError(f"There is no user {owner} on this host, who is to read {path}.") from error
    os.chmod(path, mode)
    os.chown(path, user.pw_uid, user.pw_gid if owner != "root" else 0)


def _folder(path: str, owner: str, record: Record) -> None:
    """Makes what is missing of a folder; one for keys alone can be entered by their reader alone."""
    if os.path.isdir(path):
        return
    _folder(os.path.dirname(path), "root", record)
    record.note("directory", path)
    record.save()
    os.mkdir(path)
    _own(path, owner if os.path.basename(path) == "private" else "root", 0o700 if path.endswith("private") else 0o755)


# --- remove


def remove(stores: list[Store], record: Record, check: bool) -> list[str]:
    """Gives back the places that we took: with what was in them before, or with nothing."""
    ours = [
        path
        for store in stores
        for path in (*store["key"], *store["certificate"], *store["ca"])
        if record.holds("file", path)
    ]
    work = restore.Work(restore.Host(), record, check)
    for path in dict.fromkeys(ours):
        restore.settle_file(work, path, record.before("file", path))
        work.forget("file", path)
    for folder in () if check else sorted({os.path.dirname(path) for path in ours}, key=len, reverse=True):
        while record.holds("directory", folder) and not os.listdir(folder):
            os.rmdir(folder)
            record.forget("directory", folder)
            folder = os.path.dirname(folder)
    return ours


# --- the daemons


def reload_daemons() -> None:
    """Makes a daemon that runs read its certificates: guests and connections go on. An idle one reads them later."""
    for daemon, socket in SERVERS.items():
        if not all(run(["systemctl", "is-active", "--quiet", unit])[0] == 0 for unit in (f"{daemon}.service", socket)):
            continue
        if commands.which("virt-admin"):
            server = ["virt-admin", "--connect", f"{daemon}:///system", "server-update-tls", daemon]
            if run(server)[0] == 0:
                continue
        run(["systemctl", "try-restart", f"{daemon}.service"])


def main() -> None:
    paths = {"type": "list", "elements": "str", "required": True}
    store = {
        "name": {"type": "str", "required": True},
        "ca": paths,
        "certificate": paths,
        "key": {"no_log": False, **paths},
        "owner": {"type": "str", "default": "root"},
    }
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["look", "request", "install", "remove"], "required": True},
            "stores": {"type": "list", "elements": "dict", "options": store, "default": []},
            "source": {"type": "dict", "default": {}},
            "ca": {"type": "str", "default": ""},
            "certificates": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    wanted, step, check = module.params, module.params["step"], module.check_mode
    try:
        if step == "look" or (check and step != "remove"):
            module.exit_json(changed=False, **look(wanted["stores"], wanted["source"]))
        if step == "request":
            module.exit_json(changed=True, requests=request(wanted["stores"]))
        with open_record(check=check) as record:
            if step == "remove":
                gone = remove(wanted["stores"], record, check)
                module.exit_json(changed=bool(gone), paths=gone)
            files = (wanted["stores"], wanted["source"], wanted["ca"], wanted["certificates"])
            written = install(*files, record, reload_daemons)
        module.exit_json(changed=True, paths=written)
    except (FilesError, RecordError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
