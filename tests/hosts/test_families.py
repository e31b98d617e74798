"""The roles on hosts that pretend to be of another family: its os-release, package manager and names of packages.

Everything from Ansible's own dnf, zypper and pacman modules to systemd is real; the packages are stand-ins that bring
what the roles meet: units that listen, users, groups and files. So a guest cannot run there, and none is asked for.

The tests of this file tell one story in order, on one lab of three hosts.
"""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import stand_ins

from orchestrator import __version__

pytestmark = pytest.mark.hosts

ROOT = Path(__file__).resolve().parents[2]
HOSTS = {f"families-{number}": name for number, name in enumerate(stand_ins.HOSTS, 1)}
EL, SUSE, ARCH = HOSTS
MONOLITHIC = ["libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket"]
MODULAR = [
    f"virt{name}d{kind}"
    for name in (*stand_ins.MODULAR, "proxy")
    for kind in (".socket", "-ro.socket", "-admin.socket")
]
SETTINGS = "{libvirt_qemu_settings: {max_files: 32768}}"


@pytest.fixture(scope="module")
def lab(kvmfleet):
    """The folder of a lab whose hosts pretend, removed at the end."""
    up = kvmfleet(
        *("lab", "up", "families", "--provider", "container", "--os", "debian-12"), "--hosts", "3", "--yes", "--bare"
    )
    try:
        assert up.returncode == 0, up.stderr
        folder = Path(json.loads(kvmfleet("lab", "status", "families", "--json").stdout)["inventory"]).parent
        program = (Path(__file__).parent / "pretend.py").read_text()
        with ThreadPoolExecutor() as pool:
            list(
                pool.map(
                    lambda host: root(
                        folder, host, "python3 -", f"{program}\npretend({stand_ins.HOSTS[HOSTS[host]]!r})"
                    ),
                    HOSTS,
                )
            )
        yield folder
    finally:
        down = kvmfleet("lab", "down", "families", "--yes")
        assert down.returncode == 0, down.stderr


def root(folder, host, command, text=None):
    """Runs a command as root on a host, with a text on its standard input; gives what it printed."""
    argv = ["ssh", "-F", folder / "ssh_config", "-o", "LogLevel=ERROR", host, "sudo", "sh", "-c", f"'{command}'"]
    done = subprocess.run(argv, input=text or "", capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def on(lab):
    return lambda host, command: root(lab, host, command)


@pytest.fixture
def provision(lab, ansible):
    """Runs the playbook; gives how many tasks changed each host, which must all have got to the end."""

    def run(*arguments, hosts=tuple(HOSTS), playbook="playbooks/provision.yml", program=ansible):
        inventory = ("-i", lab / "inventory.yml", "-l", ",".join(hosts), "-e", SETTINGS)
        done = program("ansible-playbook", *inventory, playbook, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        ends = re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=0 +failed=0 ", done.stdout, re.MULTILINE)
        assert {host for host, _ in ends} == set(hosts), done.stdout
        return {host: int(number) for host, number in ends}

    return run


@pytest.fixture
def elsewhere(tmp_path):
    """Runs one of Ansible's programs in an empty folder, with its own ideas of where collections are."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    environment |= {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "collections"), "NO_COLOR": "1"}
    return lambda program, *arguments: subprocess.run(
        [Path(sys.executable).parent / program, *arguments],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
    )


def units(on, host):
    """Unit -> its state for the next boot and now, such as "enabled active"."""
    shown = on(
        host,
        "systemctl show --property=Id,UnitFileState,ActiveState -- virt\\*.socket libvirt\\*.socket libvirtd.service",
    )
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.strip().split("\n\n")]
    listed = on(host, "systemctl list-unit-files --no-legend virt\\* libvirt\\*").splitlines()
    states = {line.split()[0]: line.split()[1] for line in listed}
    active = {block["Id"]: block["ActiveState"] for block in blocks}
    return {name: f"{state} {active.get(name, 'inactive')}" for name, state in states.items()}


def contract(on, host):
    return json.loads(on(host, "cat /etc/kvmfleet/contract.json"))


def test_check_mode_is_clean_on_a_bare_host_of_every_family(provision, on):
    provision("--check", "--diff")
    for host in HOSTS:
        assert on(host, "test ! -e /etc/kvmfleet && ! command -v virsh && echo bare") == "bare\n"


def test_the_roles_run_to_the_end_on_every_family(provision):
    assert all(provision().values())


@pytest.mark.parametrize(
    ("host", "platform", "binary", "user", "packages"),
    [
        (
            EL,
            "RedHat_9",
            "/usr/libexec/qemu-kvm",
            "qemu",
            "qemu-kvm swtpm-tools edk2-ovmf libvirt-daemon-kvm libvirt-client",
        ),
        (SUSE, "openSUSE_Tumbleweed", "/usr/bin/qemu-system-x86_64", "qemu", "qemu-x86 qemu-tools libvirt-daemon-qemu"),
        (ARCH, "Archlinux", "/usr/bin/qemu-system-x86_64", "libvirt-qemu", "qemu-base edk2-ovmf libvirt dnsmasq swtpm"),
    ],
)
def test_the_contract_names_what_the_family_has(on, host, platform, binary, user, packages):
    written = contract(on, host)
    assert written["platform"] == platform
    assert (written["qemu"]["binary"], written["qemu"]["user"]) == (binary, user)
    assert set(packages.split()) <= set(written["packages"])
    query = "pacman --query" if host == ARCH else "rpm --query"
    on(host, f"{query} {' '.join(written['packages'])}; test -x {binary}; id {user}; getent group libvirt")


def test_nothing_is_installed_that_was_only_recommended(on):
    assert "not installed" in on(EL, "rpm --query qemu-kvm-ui-opengl || true")
    assert "not installed" in on(SUSE, "rpm --query qemu-ui-gtk || true")


@pytest.mark.parametrize("host", [EL, SUSE])
def test_modular_sockets_that_were_only_enabled_are_started(on, host):
    found = units(on, host)
    assert {found[name] for name in [*MODULAR, "virtlogd.socket"]} == {"enabled active"}
    assert contract(on, host)["libvirt"]["family"] == "modular"
    assert on(host, "test -S /run/libvirt/virtqemud-sock && echo listens") == "listens\n"


def test_of_two_installed_families_one_runs_and_the_other_is_masked(on):
    found = units(on, ARCH)
    assert {found[name] for name in [*MONOLITHIC, "virtlogd.socket"]} == {"enabled active"}
    assert {found[name] for name in MODULAR} == {"masked inactive"}
    assert contract(on, ARCH)["libvirt"]["family"] == "monolithic"


def test_settings_and_users_arrive_on_every_family(on):
    for host in HOSTS:
        lines = on(
            host, "cat /etc/libvirt/qemu.conf; stat --format=%a /etc/libvirt/qemu.conf; id --groups --name kvmfleet"
        )
        assert "\nmax_files = 32768\n" in lines
        assert lines.splitlines()[-2] == "600"
        assert "libvirt" in lines.splitlines()[-1].split()


def test_the_installed_collection_runs_without_the_checkout_and_changes_nothing_more(provision, elsewhere, tmp_path):
    for arguments in (
        ("build", ROOT),
        ("install", "--offline", "-p", "collections", f"kvmfleet-host-{__version__}.tar.gz"),
    ):
        done = elsewhere("ansible-galaxy", "collection", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    again = provision(playbook="kvmfleet.host.provision", program=elsewhere)
    assert set(again.values()) == {0}


def test_validate_reads_every_familys_packages_and_units(kvmfleet, lab):
    for host, found in judged(kvmfleet, lab).items():
        assert {found[check]["status"] for check in CHECKS} == {"pass"}, (host, found)


CHECKS = (
    "contract.present",
    "contract.packages",
    "contract.files",
    "libvirt.daemon",
    "libvirt.sockets",
    "libvirt.users",
)


def judged(kvmfleet, lab):
    """Host -> check -> finding."""
    done = kvmfleet("validate", "-i", lab / "inventory.yml", "--boot", "proof", "--json")
    return {host["name"]: {f["check"]: f for f in host["findings"]} for host in json.loads(done.stdout)["hosts"]}


def test_two_active_families_an_upgrade_and_a_change_of_mind_end_in_one_family_each(provision, kvmfleet, lab, on):
    """EL has both at work, as after somebody started libvirtd; SUSE was upgraded and goes on with libvirtd; on Arch the
    inventory asks for the other family."""
    proxy = " ".join(name for name in MODULAR if name.startswith("virtproxyd"))
    old, new = " ".join(MONOLITHIC), " ".join(MODULAR)
    on(EL, f"dnf -q -y install libvirt-daemon; systemctl disable --now {proxy}; systemctl enable --now {old}")
    on(SUSE, "zypper --non-interactive --quiet install libvirt-daemon")
    on(SUSE, f"systemctl disable --now {new} virtqemud.service; systemctl enable --now {old} libvirtd.service")
    assert "libvirtd and virtqemud" in judged(kvmfleet, lab)[EL]["libvirt.daemon"]["summary"]

    (lab / "host_vars").mkdir()
    (lab / "host_vars" / ARCH).write_text("libvirt_family: modular\n")
    assert all(provision().values())
    families = {host: contract(on, host)["libvirt"]["family"] for host in HOSTS}
    assert families == {EL: "modular", SUSE: "monolithic", ARCH: "modular"}
    for host, family in families.items():
        runs, rests = (MODULAR, MONOLITHIC) if family == "modular" else (MONOLITHIC, MODULAR)
        found = units(on, host)
        assert {found[name] for name in [*runs, "virtlogd.socket"]} == {"enabled active"}, (host, found)
        assert {found[name] for name in rests} == {"masked inactive"}, (host, found)
    for host, found in judged(kvmfleet, lab).items():
        assert found["libvirt.daemon"]["status"] == found["libvirt.sockets"]["status"] == "pass", (host, found)


def test_check_mode_is_clean_on_converged_hosts(provision):
    assert set(provision("--check").values()) == {0}


SIBLINGS = {
    # the same packages under the same names, so that only the contract, which names the platform, would change
    "RedHat_10": (
        EL,
        {"ID": "rhel", "NAME": "Red Hat Enterprise Linux", "VERSION_ID": "10.0"},
        "Red Hat Enterprise Linux",
    ),
    "Fedora": (EL, {"ID": "fedora", "NAME": "Fedora Linux", "VERSION_ID": "43"}, "Fedora"),
    "Suse_16": (SUSE, {"ID": "sles", "NAME": "SLES", "PRETTY_NAME": "SUSE Linux Enterprise", "VERSION_ID": "16.0"}, ""),
    "Suse_15": (SUSE, {"ID": "opensuse-leap", "NAME": "openSUSE Leap", "VERSION_ID": "15.6"}, ""),
}


@pytest.mark.parametrize("pair", [("RedHat_10", "Suse_16"), ("Fedora", "Suse_15")])
def test_siblings_ask_for_packages_that_are_there(provision, lab, pair):
    for platform in pair:
        host, release, redhat = SIBLINGS[platform]
        become(lab, host, release, redhat)
    assert provision("--check", hosts=(EL, SUSE)) == {EL: 1, SUSE: 1}


def become(lab, host, release, redhat):
    root(lab, host, "cat > /etc/os-release", stand_ins.os_release(**release))
    if redhat:
        root(lab, host, "cat > /etc/redhat-release", f"{redhat} release {release['VERSION_ID']}\n")


def test_el8_says_what_to_install_by_hand_and_takes_it_from_there(provision, ansible, lab, on):
    become(
        lab, EL, {"ID": "rhel", "NAME": "Red Hat Enterprise Linux", "VERSION_ID": "8.10"}, "Red Hat Enterprise Linux"
    )
    stopped = ansible("ansible-playbook", "-i", lab / "inventory.yml", "-l", EL, "playbooks/provision.yml")
    assert stopped.returncode == 2
    assert "dnf install qemu-kvm qemu-img swtpm" in stopped.stdout
    by_hand = ("-e", "{qemu_kvm_install: false, libvirt_install: false, libvirt_family: monolithic}")
    assert provision(*by_hand, hosts=(EL,))[EL] > 0
    written = contract(on, EL)
    assert (written["platform"], written["libvirt"]["family"]) == ("RedHat_8", "monolithic")
    assert {units(on, EL)[name] for name in MONOLITHIC} == {"enabled active"}
