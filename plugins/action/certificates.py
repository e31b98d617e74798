"""Carries requests for certificates from a host to the fleet's CA, and the certificates back."""

from __future__ import annotations

import datetime
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.kvmfleet.host.plugins.plugin_utils.certificates import Authority, PkiError, judge

STORE = {
    "name": {"type": "str", "required": True},
    "ca": {"type": "list", "elements": "str", "required": True},
    "certificate": {"type": "list", "elements": "str", "required": True},
    "key": {"type": "list", "elements": "str", "required": True, "no_log": False},
    "owner": {"type": "str", "default": "root"},
}
OPTIONS = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "examine": {"type": "bool", "default": False},
    "stores": {"type": "list", "elements": "dict", "options": STORE, "required": True},
    "names": {"type": "list", "elements": "str", "required": True},
    "pki": {"type": "path", "default": ""},
    "passphrase": {"type": "str", "default": "", "no_log": True},
    "days": {"type": "int", "default": 365},
    "rotate": {"type": "bool", "default": False},
    "source": {"type": "dict", "default": {}},
}
NO_TLS = (
    "This host's libvirt has no socket for TLS: neither libvirtd-tls.socket nor virtproxyd-tls.socket. Install the "
    "package of its distribution that brings one (libvirt-daemon-proxy where daemons are modular), or take tls out of "
    "libvirt_remote_transports."
)


class ActionModule(ActionBase):  # type: ignore[misc]
    """One task: look, and where there is something to do, request, sign and install."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, self._wanted = self.validate_argument_spec(argument_spec=OPTIONS)
        self._variables = task_vars or {}
        try:
            if self._wanted["state"] == "absent":
                return result | self._host("remove", stores=self._wanted["stores"])
            authority = None if self._wanted["source"] else Authority(self._wanted["pki"], self._wanted["passphrase"])
            seen = self._host("look", stores=self._wanted["stores"], source=self._wanted["source"])
            if seen["lacks_tls"]:
                raise PkiError(NO_TLS)
            work = self._own(seen) if authority is None else self._ours(seen, authority)
        except PkiError as e:
            raise AnsibleActionFail(str(e)) from e
        if self._wanted["examine"]:
            return result | {"changed": False, "renewed": {}}
        return result | self._carry_out(*work, authority)

    def _own(self, seen: dict[str, Any]) -> tuple[str, dict[str, str], bool]:
        """A certificate that somebody else looks after: sound, or a reason to stop."""
        source, paths = seen["source"], self._wanted["source"]
        for kind in ("ca", "certificate"):
            if not source[kind]:
                raise PkiError(f"libvirt_remote_{_VARIABLES[kind]}: this host has no {paths[kind]}.")
        if not source["key"]:
            raise PkiError(f"libvirt_remote_key: this host has no {paths['key']}.")
        if not source["private"]:
            raise PkiError(
                f"libvirt_remote_key: {paths['key']} can be read by its group or by others, so it may be no secret any "
                "more. Get a new key and certificate; or, if nobody read it, chmod 600 it."
            )
        if not source["fits"]:
            raise PkiError(
                f"libvirt_remote_key: {paths['key']} is not the key of {paths['certificate']}, or has a passphrase, "
                "which no daemon could type."
            )
        if problem := judge(source["certificate"], source["ca"], self._wanted["names"], _now()).problem:
            raise PkiError(
                f"libvirt_remote_certificate: {paths['certificate']} {problem}. Put a valid one there, then try again."
            )
        stale = {
            store["name"]: "the file is another"
            for store in self._wanted["stores"]
            if not _all_are(source["certificate"], seen["stores"][store["name"]]["certificate"])
            or not seen["stores"][store["name"]]["fits"]
        }
        return source["ca"], stale, self._is_wrong(seen, source["ca"])

    def _ours(self, seen: dict[str, Any], authority: Authority) -> tuple[str, dict[str, str], bool]:
        """Which certificates of the fleet's CA have to be made anew, and why."""
        reasons = {
            store["name"]: self._reason(seen["stores"][store["name"]], authority) for store in self._wanted["stores"]
        }
        stale = {name: reason for name, reason in reasons.items() if reason}
        return authority.pem, stale, self._is_wrong(seen, authority.pem)

    def _reason(self, store: dict[str, Any], authority: Authority) -> str:
        """Why a store needs a new key and certificate, "" where it does not."""
        first = store["certificate"][0]
        if first is None:
            return "there is none"
        if not _all_are(first, store["certificate"]) or not store["fits"]:
            return "certificate and key do not belong together"
        judgement = judge(first, authority.pem, self._wanted["names"], _now(), exactly=True)
        if judgement.problem:
            return f"it {judgement.problem}"
        if not authority.issued(first):
            return "the CA is another"
        if judgement.ageing:
            return "the last third of its life has begun"
        return "it was asked for" if self._wanted["rotate"] else ""

    def _is_wrong(self, seen: dict[str, Any], ca: str) -> bool:
        """Whether something besides a certificate has to be put right: the CA's file, owners, modes, an older run."""
        return seen["unread"] or not all(
            store["right"] and _all_are(ca, store["ca"]) for store in seen["stores"].values()
        )

    def _carry_out(self, ca: str, stale: dict[str, str], wrong: bool, authority: Authority | None) -> dict[str, Any]:
        told = {"changed": bool(stale) or wrong, "renewed": stale}
        if self._task.diff and told["changed"]:
            told["diff"] = [{"prepared": "".join(f"+ certificate for {k}: {v}\n" for k, v in stale.items())}]
        if self._task.check_mode or not told["changed"]:
            return told
        stores = [store for store in self._wanted["stores"] if store["name"] in stale]
        if authority is None:
            text = self._host("look", stores=[], source=self._wanted["source"])["source"]["certificate"]
            certificates = {store["name"]: text for store in stores}
        elif stores:
            requests = self._host("request", stores=stores)["requests"]
            try:
                certificates = {name: self._sign(authority, name, text) for name, text in requests.items()}
            except PkiError as e:
                raise AnsibleActionFail(str(e)) from e
        else:
            certificates = {}
        self._host(
            "install", stores=self._wanted["stores"], source=self._wanted["source"], ca=ca, certificates=certificates
        )
        return told

    def _sign(self, authority: Authority, store: str, request: str) -> str:
        host = self._variables["inventory_hostname"]
        return authority.sign(request, host, store, self._wanted["names"], self._wanted["days"])

    def _host(self, step: str, **arguments: Any) -> dict[str, Any]:
        """The module on the host. It never gets the passphrase."""
        answer: dict[str, Any] = self._execute_module(
            module_name="kvmfleet.host.certificate_files",
            module_args={"step": step, **arguments},
            task_vars=self._variables,
        )
        if answer.get("failed"):
            raise AnsibleActionFail(answer.get("msg", "the module gave no answer"), result=answer)
        return answer


_VARIABLES = {"ca": "ca_certificate", "certificate": "certificate"}


def _all_are(text: str, files: list[str | None]) -> bool:
    return all(file == text for file in files)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
