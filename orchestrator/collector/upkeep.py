"""What wears off with time: units that failed, disks that fill, kernels that wait, kills that the kernel counted."""

import glob
import os
import re
from typing import Any, Dict, List, Optional

from . import files, shell

PLACES = ("/", "/boot", "/var", "/var/log", "/var/lib", "/var/lib/libvirt")
REMOTE = re.compile(r"nfs|cifs|smb|ceph|gluster|fuse|9p|lustre|gpfs|ocfs|gfs|autofs|virtiofs")


def look(libvirt: Dict[str, Any]) -> Dict[str, Any]:
    """The section `libvirt` has asked systemd for its units, and for those that failed."""
    return {
        "failed_units": libvirt["failed_units"] if libvirt.get("units") else failed_units(),
        "disks": disks(files.text("/proc/self/mounts", 1 << 20)),
        "kernels": kernels(),
        "tainted": files.number("/proc/sys/kernel/tainted"),
        "oom_kills": oom_kills(files.text("/proc/vmstat")),
    }


def failed_units() -> Optional[List[str]]:
    """None where systemd does not run this host, or does not answer."""
    if not shell.which("systemctl") or not os.path.isdir("/run/systemd/system"):
        return None
    answer = shell.run(["systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "--no-pager", "--full"])
    return names(answer.out) if answer.code == 0 else None


def names(listing: str) -> List[str]:
    """The first word of every line, after the dot that some versions draw."""
    return re.findall(r"^\W*(\S+\.[a-z]+) ", listing, re.MULTILINE)


def disks(mounts: str) -> Dict[str, Any]:
    """The local file systems that the host and libvirt write to. One that a server has could hang us."""
    found = {}
    types = {words[1]: words[2] for words in map(str.split, mounts.splitlines()) if len(words) > 2}
    for path in PLACES:
        if path in types and not REMOTE.search(types[path]):
            info = os.statvfs(path)
            found[path] = {
                "size_mib": info.f_blocks * info.f_frsize >> 20,
                "free_mib": info.f_bavail * info.f_frsize >> 20,
                "inodes": min(info.f_files, files.LARGEST),
                "inodes_free": min(info.f_favail, files.LARGEST),
                "read_only": bool(info.f_flag & os.ST_RDONLY),
            }
    return found


def kernels(root: str = "") -> List[str]:
    """Releases with modules and an image. What a removed kernel leaves behind has only some of the modules."""
    folders = glob.glob(root + "/lib/modules/*/modules.dep")
    releases = [os.path.basename(os.path.dirname(path)) for path in folders]
    images = ("{}/boot/vmlinuz-{}", "{}/lib/modules/{}/vmlinuz")
    return sorted(one for one in releases if any(os.path.exists(image.format(root, one)) for image in images))


def oom_kills(vmstat: str) -> Optional[int]:
    found = re.search(r"^oom_kill (\d{1,18})$", vmstat, re.MULTILINE)
    return int(found.group(1)) if found else None
