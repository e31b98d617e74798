"""Certificates of this host, and whether it is reached over TLS and reaches the hosts that it was told to."""

import threading
import time
from typing import Any, Dict, List, Tuple

from .contract import Contract
from .limits import undisturbed

PEERS = 16  # a host asks so many, those that follow it in the list


def look(contract: Contract) -> Dict[str, Any]:
    """Nothing, and no cost, where no TLS is promised."""
    wishes = contract.table("remote").get("certificates")
    pairs = [wish for wish in wishes if isinstance(wish, dict)][:16] if isinstance(wishes, list) else []
    if not pairs:
        return {}
    from . import tls  # only now: loading OpenSSL takes longer than many a section, and a small Python may lack it

    found = {}
    for wish in pairs:
        ca, certificate, key = (str(wish.get(kind, "")) for kind in ("ca", "certificate", "key"))
        found[certificate] = tls.certificate(ca, certificate, key)
    answers = {"certificates": found, "peers": peers(asked(contract), port(contract))}
    if not contract.names("remote.sasl.mechanisms"):
        return answers
    from . import sasl

    return dict(answers, sasl=sasl.look(contract))


def port(contract: Contract) -> int:
    number = contract.table("remote").get("port")
    return number if isinstance(number, int) and 0 < number < 65536 else 16514


def asked(contract: Contract) -> List[Tuple[str, str]]:
    """Name and address of this host itself, and of those after it in the list of its peers."""
    names, addresses = contract.names("remote.names"), contract.names("remote.addresses")
    others = sorted(set(contract.names("remote.peers")) - set(names))
    mine = names[:1]
    after = [name for name in others if mine and name > mine[0]]
    ring = after + [name for name in others if name not in after]
    return [(name, (addresses or [name])[0]) for name in mine] + [(name, name) for name in ring[:PEERS]]


def peers(wanted: List[Tuple[str, str]], number: int) -> Dict[str, Any]:
    """All at the same time. A thread that is still busy, with a name server that is silent, goes with the process."""
    from . import tls

    found = {name: {"error": "no answer in {:.0f} s".format(tls.PATIENCE_S)} for name, _ in wanted}  # type: Dict[str, Any]

    def ask(name: str, where: str) -> None:
        answer = tls.peer(name, where, number)
        if not closed:
            found[name] = answer

    closed = []  # type: List[bool]
    threads = [threading.Thread(target=ask, args=pair, daemon=True) for pair in wanted]
    end = time.monotonic() + tls.PATIENCE_S + 1
    with undisturbed():  # inherited: else a signal that waits for the main thread would reach it through one of these
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    closed.append(True)
    return dict(found)
