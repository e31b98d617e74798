"""Stand-ins for other families' packages: the names, units, users and files that the roles meet there, no more.

The daemons are one small program. It listens on the sockets that systemd hands it and goes when nobody calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MODULAR = ("qemu", "interface", "network", "nodedev", "nwfilter", "secret", "storage")
"""The drivers with a daemon of their own."""

DAEMON = """#!/usr/bin/python3
import os, select, socket
listening = [socket.socket(fileno=3 + n) for n in range(int(os.environ.get("LISTEN_FDS", "0")))]
if "NOTIFY_SOCKET" in os.environ:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    called, _, _ = select.select(listening, [], [], 120)
    if not called:
        break
    for one in called:
        caller, _ = one.accept()
        caller.close()
"""
"""Goes after 120 seconds in which nobody called, as libvirt's own daemons do."""

Package = dict[str, Any]


def package(
    name: str,
    files: Mapping[str, str | tuple[str, int]] | None = None,
    *,
    post: str = "",
    requires: Iterable[str] = (),
    recommends: Iterable[str] = (),
    provides: Iterable[str] = (),
    groups: Iterable[str] = (),
) -> Package:
    """One package; files have the mode 0644 unless they bring another one."""
    modes = {path: (file, 0o644) if isinstance(file, str) else file for path, file in (files or {}).items()}
    return {
        "name": name,
        "files": modes or {f"/usr/share/stand-ins/{name}": ("", 0o644)},
        "post": post,
        "requires": list(requires),
        "recommends": list(recommends),
        "provides": list(provides),
        "groups": list(groups),
    }


def daemon(name: str, address: str | None = None, *also: str) -> dict[str, str | tuple[str, int]]:
    """A daemon, its service and its three sockets."""
    sockets = [name + kind for kind in (".socket", "-ro.socket", "-admin.socket")]
    service = f"""[Unit]
Description=Stand-in for {name}
Requires={" ".join(sockets)}
[Service]
Type=notify
ExecStart=/usr/sbin/{name}
[Install]
WantedBy=multi-user.target
Also={" ".join([*sockets, *also])}
"""
    files: dict[str, str | tuple[str, int]] = {f"/usr/lib/systemd/system/{name}.service": service}
    for socket in sockets:
        path = (address or name) + {"": "-sock", "-ro": "-sock-ro", "-admin": "-admin-sock"}[
            socket.removeprefix(name).removesuffix(".socket")
        ]
        above = f"BindsTo={sockets[0]}\nAfter={sockets[0]}\n" if socket != sockets[0] else ""
        files[f"/usr/lib/systemd/system/{socket}"] = f"""[Unit]
Description=Stand-in for {socket}
{above}[Socket]
ListenStream=/run/libvirt/{path}
Service={name}.service
[Install]
WantedBy=sockets.target
"""
    return files | {f"/usr/sbin/{name}": (DAEMON, 0o755), f"/etc/libvirt/{name}.conf": "# nothing is set\n"}


def keeper(name: str) -> dict[str, str | tuple[str, int]]:
    """virtlogd or virtlockd, of which one socket matters."""
    files = daemon(name)
    return {path: file for path, file in files.items() if "-ro.socket" not in path} | {
        f"/usr/lib/systemd/system/{name}.service": str(files[f"/usr/lib/systemd/system/{name}.service"]).replace(
            f" {name}-ro.socket", ""
        )
    }


def preset(*names: str) -> str:
    """What an RPM does with its units when it is installed: what the presets say, and it starts nothing."""
    return f"systemctl --no-reload preset {' '.join(names)} >/dev/null 2>&1 || :\nsystemctl daemon-reload || :"


def units(files: Mapping[str, Any]) -> list[str]:
    """The names of the units among a package's files."""
    return [path.rpartition("/")[2] for path in files if path.startswith("/usr/lib/systemd/system/")]


LENSES: dict[str, str | tuple[str, int]] = {
    "/usr/share/augeas/lenses/libvirtd_qemu.aug": "".join(
        f'let entry = any_entry "{name}"\n'
        for name in (
            "max_files",
            "migration_port_max",
            "migration_port_min",
            "remember_owner",
            "seccomp_sandbox",
            "security_default_confined",
            "security_driver",
            "security_require_confined",
            "user",
        )
    ),
    "/usr/share/augeas/lenses/virtqemud.aug": 'let logging_entry = int_entry "log_level"\n',
}
QEMU_CONF: dict[str, str | tuple[str, int]] = {
    "/etc/libvirt/qemu.conf": ("# the distribution's own\n#max_files = 0\n", 0o600)
}
QEMU_USER = """getent group kvm >/dev/null || groupadd -r kvm
getent group qemu >/dev/null || groupadd -g 107 -r qemu
getent passwd qemu >/dev/null || useradd -r -u 107 -g qemu -G kvm -d / -s /sbin/nologin qemu
getent group libvirt >/dev/null || groupadd -r libvirt"""


def program(*paths: str) -> dict[str, str | tuple[str, int]]:
    """Programs that only have to be there."""
    return dict.fromkeys(paths, ("#!/bin/sh\nexit 1\n", 0o755))


def drivers() -> list[Package]:
    """The packages of the modular daemons, as libvirt's spec file splits them."""
    made = []
    for driver in MODULAR:
        files = daemon(f"virt{driver}d", None, "virtlogd.socket")
        if driver == "qemu":
            files |= QEMU_CONF | LENSES
        post = preset(*units(files))
        needs = ["libvirt-daemon-common", "libvirt-daemon-log"]
        made.append(
            package(
                f"libvirt-daemon-driver-{driver}",
                files,
                post=f"{QEMU_USER}\n{post}" if driver == "qemu" else post,
                requires=needs,
            )
        )
    parts = {
        "log": keeper("virtlogd"),
        "lock": keeper("virtlockd"),
        "proxy": daemon("virtproxyd", "libvirt"),
    }
    made += [package(f"libvirt-daemon-{name}", files, post=preset(*units(files))) for name, files in parts.items()]
    monolith = daemon("libvirtd", "libvirt", "virtlogd.socket")
    return [
        *made,
        package("libvirt-daemon-common", {"/usr/bin/virt-host-validate": ("#!/bin/sh\n", 0o755)}),
        package("libvirt-daemon-plugin-lockd"),
        package("libvirt-daemon", monolith, post=preset(*units(monolith)), requires=["libvirt-daemon-log"]),
        package("libvirt-daemon-config-network", {"/etc/libvirt/qemu/networks/default.xml": "<network/>\n"}),
        package("libvirt-client", program("/usr/bin/virsh")),
        package("shell", provides=["/bin/sh"]),  # for rpm, which does not know what dpkg installed
    ]


def modular_parts() -> list[str]:
    """What the package with which one asks for the modular daemons brings along."""
    return [
        *(f"libvirt-daemon-driver-{driver}" for driver in MODULAR),
        *(f"libvirt-daemon-{name}" for name in ("common", "log", "lock", "proxy", "plugin-lockd")),
    ]


PRESETS = "".join(
    f"enable {daemon}{kind}\n"
    for daemon in [*(f"virt{driver}d" for driver in MODULAR), "virtproxyd", "virtlogd", "virtlockd"]
    for kind in (".socket", "-ro.socket", "-admin.socket")
) + "".join(f"enable virt{driver}d.service\n" for driver in MODULAR)

ENTERPRISE = [
    *drivers(),
    package("libvirt-daemon-kvm", requires=[*modular_parts(), "qemu-kvm"], recommends=["libvirt-daemon"]),
    package("qemu-kvm", program("/usr/libexec/qemu-kvm"), recommends=["qemu-kvm-ui-opengl"]),
    package("qemu-kvm-ui-opengl"),
    package("qemu-img", program("/usr/bin/qemu-img")),
    package("swtpm", program("/usr/bin/swtpm")),
    package("swtpm-tools", program("/usr/bin/swtpm_setup")),
    package("edk2-ovmf", {"/usr/share/qemu/firmware/50-edk2-ovmf-x64.json": "{}\n"}),
    package("edk2-aarch64", {"/usr/share/qemu/firmware/60-edk2-aarch64.json": "{}\n"}),
]
"""EL 9 and 10, and what Fedora has under the same names."""

SUSE = [
    *drivers(),
    package("libvirt-daemon-qemu", requires=[*modular_parts(), "qemu"]),
    package("qemu", provides=["qemu-core"]),
    package("qemu-x86", program("/usr/bin/qemu-system-x86_64"), requires=["qemu"], recommends=["qemu-ui-gtk"]),
    package("qemu-arm", program("/usr/bin/qemu-system-aarch64"), requires=["qemu"]),
    package("qemu-ui-gtk"),
    package("qemu-tools", program("/usr/bin/qemu-img")),
    package("qemu-ovmf-x86_64", {"/usr/share/qemu/firmware/50-ovmf-x86_64.json": "{}\n"}),
    package("qemu-uefi-aarch64", {"/usr/share/qemu/firmware/50-aavmf-aarch64.json": "{}\n"}),
    package("swtpm", program("/usr/bin/swtpm")),
    package("dnsmasq", program("/usr/sbin/dnsmasq")),
]
"""openSUSE Tumbleweed, Leap and SLES 16."""


def _arch_libvirt() -> Package:
    """One package with both families, of which nothing is enabled."""
    files: dict[str, Any] = (
        dict(QEMU_CONF | LENSES) | daemon("libvirtd", "libvirt", "virtlogd.socket") | daemon("virtproxyd", "libvirt")
    )
    for driver in MODULAR:
        files |= daemon(f"virt{driver}d", None, "virtlogd.socket")
    files |= keeper("virtlogd") | keeper("virtlockd") | program("/usr/bin/virsh")
    files["/usr/lib/sysusers.d/libvirt.conf"] = (
        'g libvirt - -\nu libvirt-qemu - "Libvirt QEMU User"\nm libvirt-qemu kvm\n'
    )
    return package("libvirt", files, post="systemd-sysusers libvirt.conf\nsystemctl daemon-reload")


ARCH = [
    _arch_libvirt(),
    # There from the start, as on any Arch: the module takes it for a failure when pacman has nothing to list.
    package("filesystem", groups=["base"], requires=["iana-etc"]),
    package("iana-etc"),
    package("dnsmasq", program("/usr/bin/dnsmasq")),
    package("qemu-base", program("/usr/bin/qemu-system-x86_64")),
    package("qemu-system-aarch64", program("/usr/bin/qemu-system-aarch64")),
    package("qemu-img", program("/usr/bin/qemu-img")),
    package("edk2-ovmf", {"/usr/share/qemu/firmware/60-edk2-x86_64.json": "{}\n"}),
    package("edk2-aarch64", {"/usr/share/qemu/firmware/60-edk2-aarch64.json": "{}\n"}),
    package("swtpm", program("/usr/bin/swtpm")),
]

APT = ["/usr/bin/apt-get", "/usr/bin/dpkg-query"]
"""Hidden, or the roles and the collector would find Debian."""


def os_release(**values: str) -> str:
    """The text of /etc/os-release."""
    return "".join(f'{key}="{value}"\n' for key, value in values.items())


HOSTS: dict[str, dict[str, Any]] = {
    "el": {
        "manager": "dnf",
        "managers": ["dnf", "python3-dnf", "rpm", "createrepo-c"],
        "packages": ENTERPRISE,
        "files": {
            "/etc/redhat-release": "Red Hat Enterprise Linux release 9.6 (Plow)\n",
            "/etc/os-release": os_release(NAME="Red Hat Enterprise Linux", ID="rhel", VERSION_ID="9.6"),
            "/etc/yum.repos.d/pretend.repo": "[pretend]\nname=pretend\nbaseurl=file:///srv/repository\ngpgcheck=0\n",
            "/etc/systemd/system-preset/80-redhat.preset": PRESETS + "disable *\n",
        },
        "commands": [["createrepo_c", "--quiet", "--no-database", "/srv/repository"]],
        "hidden": APT,
    },
    "suse": {
        "manager": "zypper",
        "managers": ["zypper", "rpm"],
        "packages": SUSE,
        "files": {
            "/etc/os-release": os_release(
                NAME="openSUSE Tumbleweed", ID="opensuse-tumbleweed", ID_LIKE="opensuse suse", VERSION_ID="20261101"
            ),
            "/etc/systemd/system-preset/90-default-openSUSE.preset": PRESETS + "disable *\n",
        },
        "commands": [
            [
                "zypper",
                "--non-interactive",
                "addrepo",
                "--no-gpgcheck",
                "--type",
                "plaindir",
                "/srv/repository",
                "pretend",
            ]
        ],
        "hidden": APT,
    },
    "arch": {
        "manager": "pacman",
        "managers": ["pacman-package-manager"],
        "packages": ARCH,
        "files": {
            "/etc/arch-release": "",
            "/etc/os-release": os_release(NAME="Arch Linux", ID="arch", BUILD_ID="rolling"),
            "/etc/pacman.conf": "[options]\nArchitecture = auto\nSigLevel = Never\n"
            "[pretend]\nServer = file:///srv/repository\n",
            "/etc/systemd/system-preset/99-default.preset": "disable *\n",
        },
        "commands": [["pacman", "--sync", "--refresh", "--noconfirm", "filesystem"]],
        "hidden": APT,
    },
}
"""Which host pretends what."""
