"""Control groups, and what the whole kernel has in use and how much there can be."""

import glob
import os
import re
from typing import Any, Dict, List, Optional

from . import files, processes


def limits(proc: str = "/proc") -> Dict[str, Any]:
    # file-nr is "open free max"; loadavg has "running/all" threads as its fourth word
    opened = files.text(proc + "/sys/fs/file-nr").split()
    threads = re.search(r" \d+/(\d{1,18}) ", files.text(proc + "/loadavg"))
    return {
        "files": number(opened[0:1]),
        "files_max": number(opened[2:3]),
        "threads": int(threads.group(1)) if threads else None,
        "threads_max": files.number(proc + "/sys/kernel/threads-max"),
        "pid_max": files.number(proc + "/sys/kernel/pid_max"),
        "aio": files.number(proc + "/sys/fs/aio-nr"),
        "aio_max": files.number(proc + "/sys/fs/aio-max-nr"),
        "inotify": watchers(proc),
        "inotify_max": files.number(proc + "/sys/fs/inotify/max_user_instances"),
    }


def number(words: List[str]) -> Optional[int]:
    return min(int(words[0]), files.LARGEST) if words and re.match(r"\d{1,20}$", words[0]) else None


def watchers(proc: str, owner: int = 0) -> Optional[int]:
    """inotify instances of a user: each dnsmasq of libvirt's has one. The kernel counts them, and does not tell."""
    count = 0
    for folder in glob.glob(proc + "/[0-9]*"):
        try:
            if os.stat(folder).st_uid != owner:
                continue
            count += processes.readlinks(folder + "/fd").count("anon_inode:inotify")
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            return None
    return count


def cgroups(mounts: str = "/proc/self/mounts") -> Dict[str, Any]:
    table = [line.split() for line in files.text(mounts, 1 << 20).splitlines()]
    return {
        "hierarchy": hierarchy({row[1]: row[2] for row in table if len(row) > 2}, processes.CGROUPS) if table else None,
        "controllers": processes.words(processes.CGROUPS + "/cgroup.controllers"),
    }


def hierarchy(types: Dict[str, str], root: str) -> str:
    """What systemd calls it: v2 alone, v2 without controllers beside v1, v1 alone."""
    if types.get(root) == "cgroup2":
        return "unified"
    below = {kind for path, kind in types.items() if path.startswith(root + "/")}
    if "cgroup" not in below:
        return ""
    return "hybrid" if "cgroup2" in below else "legacy"
