"""Sends messages through apprise, as a program of its own.

So what hangs in a service can be ended, and what it logs, which may hold what its URL holds, gets nowhere.

Reads a JSON list of {"url", "title", "body", "kind"} from stdin, and prints [number, problem] in a line of its own for
each when it is done; the problem is "" when the service took it, and otherwise in words of ours.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

import apprise

__all__ = ["ASSET", "main"]

ASSET = apprise.AppriseAsset(
    app_id="kvmfleet",
    app_desc="kvmfleet",
    interpret_escapes=False,  # what hosts say is never an escape or a picture
    interpret_emojis=False,
    http_redirects=False,  # with GET a message arrives nowhere, and whoever answers says that all is well
    service_timeout=0,  # whoever started this program ends it
)
CODE = re.compile(r"\berror=(\d{3})\b")  # how apprise's services say what they were answered


def main() -> int:
    messages = json.load(sys.stdin)
    with ThreadPoolExecutor(max(len(messages), 1)) as pool:
        waiting = {pool.submit(_send, message): number for number, message in enumerate(messages)}
        for sent in as_completed(waiting):
            sys.stdout.write(json.dumps([waiting[sent], sent.result()]) + "\n")
            sys.stdout.flush()
    return 0


def _send(message: Mapping[str, str]) -> str:
    service = apprise.Apprise.instantiate(message["url"], asset=ASSET)
    if service is None:
        return "apprise does not take this URL any more"
    if service.overflow_mode == apprise.OverflowMode.UPSTREAM:  # a service that takes less would refuse it
        service.overflow_mode = apprise.OverflowMode.TRUNCATE
    done = apprise.Apprise(service, asset=ASSET).notify(
        message["body"],
        title=message["title"],
        notify_type=message["kind"],
        body_format=apprise.NotifyFormat.TEXT.value,
    )
    return "" if done else _reason(" ".join(entry.message for entry in done.logs()))


def _reason(log: str) -> str:
    """Why it failed. Nothing of the log itself, as it may hold what the URL holds."""
    if code := CODE.search(log):
        return f"the service answered {code[1]}"
    return "no connection to the service" if "onnection" in log else "the service did not take it"


if __name__ == "__main__":
    sys.exit(main())
