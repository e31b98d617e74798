"""What happens to guests when the host starts and stops: libvirt-guests' settings, and the links of autostart.

Only what the contract names is looked at, and no process is started for it.
"""

import os
import re
from typing import Any, Dict

from . import files
from .contract import Contract

DEFINITIONS = "/etc/libvirt/qemu"
KEY = re.compile(r"[A-Z_]{1,40}$")
PLACE = re.compile(r"/etc/(default|sysconfig|conf\.d)/[\w.-]+$")


def look(contract: Contract, found: Dict[str, Any], definitions: str = DEFINITIONS) -> Dict[str, Any]:
    """`found` holds the section libvirt, which asked for the unit together with all others."""
    names = [name for name in contract.names("guests.autostart") if "/" not in name]
    unit = found.get("libvirt", {}).get("units", {}).get(contract.text("guests.unit"), {})
    return {
        "settings": settings(contract),
        "unit": unit,
        "defined": [name for name in names if os.path.isfile("{}/{}.xml".format(definitions, name))],
        "autostart": [name for name in names if os.path.lexists("{}/autostart/{}.xml".format(definitions, name))],
    }


def settings(contract: Contract) -> Dict[str, str]:
    path, keys = contract.text("guests.file"), contract.table("guests.settings")
    if not keys or not PLACE.match(path):
        return {}
    values = parse(files.text(path))
    return {key: values[key] for key in keys if KEY.match(key) and key in values}


def parse(text: str) -> Dict[str, str]:
    """KEY=VALUE as a shell reads it; the last wins. What it would have to execute is not understood."""
    pairs = re.findall(r"""^[ \t]*(?:export[ \t]+)?([A-Z_]+)=("[^"\n]*"|'[^'\n]*'|[^\s#;]*)""", text, re.MULTILINE)
    return {key: value.strip("\"'") for key, value in pairs}
