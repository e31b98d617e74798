"""What the next boot will run: the kernel and its arguments, read from what the bootloader itself will read."""

import fnmatch
import glob
import os
import re
from typing import Any, Dict, Iterator, List, Optional, Tuple

from . import files

LIMIT = 1 << 20
GRUB = (("/boot/grub/grub.cfg", "/boot/grub/grubenv"), ("/boot/grub2/grub.cfg", "/boot/grub2/grubenv"))
ENTRIES = ("/boot/loader", "/efi/loader", "/boot/efi/loader")
EXTLINUX = ("/boot/extlinux.conf", "/boot/extlinux/extlinux.conf", "/boot/syslinux/syslinux.cfg")
FLAG = ("/run/reboot-required", "/var/run/reboot-required")

Entry = Dict[str, str]
"""One way to start: id, title, kernel (a file) and options."""


def look(root: str = "") -> Dict[str, Any]:
    """`source` is the file that decides, "" where none was found; then nothing is known about the next boot."""
    source, entry = chosen(root)
    release = re.match(r"(?:vmlinu[xz]|kernel|Image|bzImage)-(\d\S*)$", os.path.basename(_real(root, entry["kernel"])))
    return {
        "source": source,
        "cmdline": entry["options"],
        "kernel": release.group(1) if release else "",
        "required_by": required_by(root),
    }


def chosen(root: str) -> Tuple[str, Entry]:
    """The file that decides, and the entry that starts when nobody is at the console."""
    for loader in (_systemd_boot, _grub, _entries_alone, _extlinux):
        found = loader(root)
        if found:
            return found
    return "", {"id": "", "title": "", "kernel": "", "options": ""}


def required_by(root: str) -> List[str]:
    """Packages that ask for a reboot, as Debian's and Ubuntu's do."""
    for flag in FLAG:
        if os.path.exists(root + flag):
            return sorted(set(files.text(root + flag + ".pkgs").split())) or ["the system"]
    return []


# --- GRUB


def _grub(root: str) -> Optional[Tuple[str, Entry]]:
    for config, environment in GRUB:
        text = files.text(root + config, LIMIT)
        if not text:
            continue
        variables = grubenv(files.text(root + environment))
        wanted = default(text, variables)
        if re.search(r"^\s*blscfg\b", text, re.MULTILINE):
            entries = list(_entries(root + "/boot/loader", variables))
            newest = sorted(entries, key=lambda entry: version(entry["id"]), reverse=True)
            entry = _pick(newest, wanted)
        else:
            entry = _pick(list(menu(text)), wanted)
        return (config, dict(entry, options=expanded(entry["options"], variables))) if entry else None
    return None


def grubenv(text: str) -> Dict[str, str]:
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return dict(pairs)


def default(text: str, variables: Dict[str, str]) -> str:
    """What `set default=` will say: an index, an id or a title, with those of the submenus around it before `>`.

    grub-mkconfig writes it twice: for one boot alone (next_entry), then for every boot.
    """
    if variables.get("next_entry"):
        return variables["next_entry"]
    values = [value for value in re.findall(r'^\s*set default="(.*)"', text, re.MULTILINE) if "next_entry" not in value]
    return expanded(values[-1], variables) if values else variables.get("saved_entry", "")


def menu(text: str) -> Iterator[Entry]:
    """Every entry of a grub.cfg. Its id is the path that `default` may name, with ids and with indices."""
    path: List[Tuple[str, str, str]] = []  # index, id and title of the menus that are open
    counts = [0]
    entry: Optional[Entry] = None
    for line in text.splitlines():
        head = re.match(r"""\s*(menuentry|submenu)\s+(['"])(.*?)\2(.*)\{\s*$""", line)
        kernel = re.match(r"\s*linux(?:16|efi)?\s+(\S+)\s*(.*)$", line)
        if head:
            found = re.search(r"""(?:--id|\$menuentry_id_option)[\s=]+['"]?([^\s'"]+)""", head.group(4))
            path.append((str(counts[-1]), found.group(1) if found else head.group(3), head.group(3)))
            counts[-1] += 1
            if head.group(1) == "submenu":
                counts.append(0)
            else:
                ways = [">".join(step[i] for step in path) for i in range(3)]
                entry = {"id": path[-1][1], "title": path[-1][2], "kernel": "", "options": ""}
                entry.update(index=ways[0], path=ways[1], titles=ways[2])
        elif entry is not None and kernel and not entry["kernel"]:
            entry.update(kernel=kernel.group(1), options=kernel.group(2).strip())
        elif re.match(r"\s*\}\s*$", line) and path:
            if entry is not None:
                if entry["kernel"]:
                    yield entry
                entry = None
            else:
                counts.pop()
            path.pop()


def expanded(text: str, variables: Dict[str, str]) -> str:
    """With the variables that grubenv holds; others, such as $vt_handoff, only GRUB knows, and they are left out."""
    return " ".join(re.sub(r"\$\{?(\w+)\}?", lambda name: variables.get(name.group(1), ""), text).split())


# --- the Boot Loader Specification: Fedora's GRUB, and systemd-boot


def _systemd_boot(root: str) -> Optional[Tuple[str, Entry]]:
    """Only where it started this very boot, which it notes in a variable of the firmware."""
    for path in glob.glob(root + "/sys/firmware/efi/efivars/LoaderInfo-*"):
        if "systemd-boot" in files.text(path).replace("\0", ""):
            return _entries_alone(root)
    return None


def _entries_alone(root: str) -> Optional[Tuple[str, Entry]]:
    for folder in ENTRIES:
        wanted = re.findall(r"^default\s+(\S+)", files.text(root + folder + "/loader.conf"), re.MULTILINE)
        entries = sorted(_entries(root + folder, {}), key=lambda entry: version(entry["id"]), reverse=True)
        entries.sort(key=lambda entry: not (wanted and fnmatch.fnmatch(entry["id"] + ".conf", wanted[-1])))
        if entries:
            return "{}/entries/{}.conf".format(folder, entries[0]["id"]), entries[0]
    return None


def _entries(folder: str, variables: Dict[str, str]) -> Iterator[Entry]:
    for path in sorted(glob.glob(folder + "/entries/*.conf")):
        lines = [line.strip().split(None, 1) for line in files.text(path).splitlines()]
        keys = [(line[0], line[1]) for line in lines if len(line) == 2 and not line[0].startswith("#")]
        options = " ".join(value for key, value in keys if key == "options")
        fields = dict(keys)
        if "linux" in fields:
            yield {
                "id": os.path.basename(path)[: -len(".conf")],
                "title": fields.get("title", ""),
                "kernel": fields["linux"],
                "options": expanded(options, variables),
            }


def version(name: str) -> List[Tuple[int, str]]:
    """A key that sorts 6.12 after 6.9: numbers as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", name)]


# --- the rest


def _extlinux(root: str) -> Optional[Tuple[str, Entry]]:
    for config in EXTLINUX:
        entries: List[Entry] = []
        wanted = ""
        for line in files.text(root + config).splitlines():
            words = line.strip().split(None, 1)
            key, value = (words[0].lower() if words else ""), (words[1] if len(words) > 1 else "")
            if key == "default":
                wanted = value
            elif key == "label":
                entries.append({"id": value, "title": value, "kernel": "", "options": ""})
            elif entries and key in ("linux", "kernel"):
                entries[-1]["kernel"] = value
            elif entries and key == "append":
                entries[-1]["options"] = value
        entry = _pick([entry for entry in entries if entry["kernel"]], wanted)
        if entry:
            return config, entry
    return None


def _pick(entries: List[Entry], wanted: str) -> Optional[Entry]:
    """The wanted entry. A loader that does not find it takes the first."""
    names = ("id", "title", "index", "path", "titles")
    found = [entry for entry in entries if wanted and wanted in (entry.get(name) for name in names)]
    if not found and wanted.isdigit():  # the number of a submenu, or of an entry where the entries have none
        found = [entry for entry in entries if entry.get("index", "").startswith(wanted + ">")]
        found = found or [entry for entry in entries[int(wanted) :] if "index" not in entry]
    return (found or entries)[0] if entries else None


def _real(root: str, kernel: str) -> str:
    """Without the link that /vmlinuz is on some hosts."""
    return os.path.realpath(root + kernel) if kernel and os.path.islink(root + kernel) else kernel
