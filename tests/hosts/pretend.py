"""Makes the host that it runs on look like one of another family: its os-release, its package manager, a repository.

Runs on the host as root, with the standard library only; stand_ins.py says what there is to pretend. The packages are
real ones, made here by rpmbuild or by hand, and the package managers are the real ones in their Debian build.
"""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

REPOSITORY = Path("/srv/repository")
SPEC = """
Name: pretend
Version: 1
Release: 1
Summary: Stand-ins
License: None
BuildArch: noarch
AutoReqProv: no
%define _build_id_links none
%define __os_install_post %{nil}
%description
Stand-ins for the packages of a family.
"""
SUBPACKAGE = """
%package -n NAME
Summary: Stand-in for NAME
AutoReqProv: no
%description -n NAME
Stand-in for NAME.
"""


def pretend(wish):
    """Changes this host for good."""
    run(["apt-get", "-q", "-y", "install", "--no-install-recommends", *wish["managers"]])
    REPOSITORY.mkdir()
    {"dnf": rpms, "zypper": rpms, "pacman": pacman}[wish["manager"]](wish["packages"])
    for path, text in wish["files"].items():
        write(Path(path), text)
    for path in wish["hidden"]:
        Path(path).rename(path + ".hidden")
    for command in wish["commands"]:
        run(command)


def run(argv):
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8", HOME="/root")
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{argv}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        path.unlink()  # /etc/os-release leads into /usr/lib
    path.write_text(text)
    path.chmod(mode)


def rpms(packages):
    """All of them from one spec file: rpmbuild takes longer to start than to build."""
    write(Path("/etc/rpm/macros"), "%_dbpath /var/lib/rpm\n")  # Debian's rpm keeps it in the user's home
    root, parts = Path("/srv/tree"), [SPEC]
    for package in packages:
        for path, (text, mode) in package["files"].items():
            write(root / path.lstrip("/"), text, mode)
        name = package["name"]
        tags = [f"{tag}: {word}" for tag in ("Requires", "Recommends", "Provides") for word in package[tag.lower()]]
        head = SUBPACKAGE.replace("NAME", name).replace("AutoReqProv", "\n".join([*tags, "AutoReqProv"]))
        files = [f"%attr({mode:o},root,root) {path}" for path, (_, mode) in package["files"].items()]
        parts += [head, f"%post -n {name}", package["post"], f"%files -n {name}", *files]
    spec = Path("/srv/pretend.spec")
    spec.write_text("\n".join(parts) + "\n")
    run(["rpmbuild", "-bb", f"--buildroot={root}", f"--define=_rpmdir {REPOSITORY}", "--define=_topdir /srv/rpm", spec])


def pacman(packages):
    """A package is an archive that holds its description; a repository is an archive of what pacman wants of those."""
    with tarfile.open(REPOSITORY / "pretend.db", "w:gz") as database:
        for package in packages:
            name, needs = package["name"], package["requires"]
            lines = [f"pkgname = {name}", "pkgver = 1-1", "arch = any", "size = 0", *(f"depend = {n}" for n in needs)]
            entries = {".PKGINFO": ("\n".join(lines) + "\n", 0o644), **package["files"]}
            if package["post"]:
                entries[".INSTALL"] = ("post_install() {\n" + package["post"] + "\n}\n", 0o644)
            path = REPOSITORY / f"{name}-1-1-any.pkg.tar.gz"
            with tarfile.open(path, "w:gz") as archive:
                for entry, (text, mode) in entries.items():
                    add(archive, entry.lstrip("/"), text, mode)
            fields = {
                "FILENAME": path.name,
                "NAME": name,
                "VERSION": "1-1",
                "ARCH": "any",
                "CSIZE": str(path.stat().st_size),
                "SHA256SUM": hashlib.sha256(path.read_bytes()).hexdigest(),
                "DEPENDS": "\n".join(needs),
                "GROUPS": "\n".join(package["groups"]),
            }
            text = "".join(f"%{field}%\n{value}\n\n" for field, value in fields.items() if value)
            add(database, f"{name}-1-1/desc", text, 0o644)


def add(archive, name, text, mode):
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.uname, entry.gname = len(text.encode()), mode, "root", "root"
    archive.addfile(entry, io.BytesIO(text.encode()))
