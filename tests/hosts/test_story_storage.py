"""Storage pools on the hosts of the story: bad input, made, edited while a guest uses one, broken, removed."""

import json
import re

import pytest

pytestmark = pytest.mark.hosts

HOSTS = ("story-1", "story-2")  # Debian 12 and Debian 13
IMAGES = {"name": "images", "type": "dir", "path": "/srv/kvm/images", "mode": "0711"}
ISO = {"name": "iso", "type": "dir", "path": "/srv/kvm/iso", "owner": "libvirt-qemu", "group": "kvm", "mode": "0750"}
SECRET = {"usage": "san", "type": "iscsi", "value": "never-seen-4711"}

# A loop device of the host's own: containers have the kernel's, but not their nodes.
LOOP = (
    "test -e /dev/loop-control || mknod /dev/loop-control c 10 237; truncate -s 64M /var/tmp/vg.img; "
    "set -- $(losetup --find); device=$1; test -e $device || mknod $device b 7 ${device#/dev/loop}; "
    "losetup $device /var/tmp/vg.img && blockdev --flushbufs $device && echo $device"
)

# It needs no system to boot: it only has to hold its disk.
GUEST = (
    '<domain type=\\"qemu\\"><name>web</name><memory unit=\\"MiB\\">32</memory><os><type>hvm</type></os><devices>'
    '<disk type=\\"file\\"><source file=\\"/srv/kvm/images/web.img\\"/><target dev=\\"vda\\"/></disk></devices>'
    "</domain>"
)


@pytest.fixture(scope="module")
def devices(kvmfleet, inventory):
    """A blank block device for each host."""
    found = {}
    try:
        for host in HOSTS:
            found[host] = kvmfleet("lab", "ssh", host, "sudo", "sh", "-c", f"'{LOOP}'").stdout.strip()
            assert found[host].startswith("/dev/loop"), found
        yield found
    finally:
        # What is on a pool is its user's, who takes it away here; LVM then forgets the copy that it keeps in /etc.
        for host, device in found.items():
            kvmfleet("lab", "ssh", host, "sudo", "sh", "-c", f"'vgremove --yes vg-guests; losetup --detach {device}'")


@pytest.fixture(scope="module")
def group(devices):
    """A volume group that is there on both hosts, on whatever device."""
    device = "{{ " + json.dumps(devices) + "[inventory_hostname] }}"
    return {"name": "vg-guests", "type": "logical", "source": {"devices": [device]}, "build": True}


@pytest.fixture
def declared(tmp_path):
    """A file of variables for -e."""

    def write(*pools, **more):
        path = tmp_path / "pools.json"
        path.write_text(json.dumps({"libvirt_storage_pools": pools, **more}))
        return f"@{path}"

    return write


@pytest.fixture
def provision(kvmfleet, inventory, declared):
    """Provisions and validates; gives the hosts of the report by name."""

    def run(*pools, only="all", **more):
        variables = declared(*pools, **more)
        done = kvmfleet("provision", "-i", inventory, "-l", only, "-e", variables, "--json", "--boot", "none")
        hosts = {host["name"]: host for host in json.loads(done.stdout)["hosts"]}
        for host in hosts.values():
            assert host["converged"]["outcome"] == "ok", host["converged"]
        return hosts

    return run


@pytest.fixture
def validate(kvmfleet, inventory):
    """Gives the hosts of the report by name."""

    def run():
        done = kvmfleet("validate", "-i", inventory, "--json", "--boot", "none")
        return {host["name"]: host for host in json.loads(done.stdout)["hosts"]}

    return run


def status(host, check):
    return next(finding["status"] for finding in host["findings"] if finding["check"] == check)


def summary(host, check):
    return next(finding["summary"] for finding in host["findings"] if finding["check"] == check)


def test_bad_input_stops_before_anything_changes(inventory, ansible, declared, on):
    on(HOSTS[0], "echo > /srv/file; mkdir -m 0700 /srv/closed")
    bad = [
        {"name": "a", "type": "dir", "path": "/srv/file"},
        {"name": "b", "type": "dir", "path": "/srv/closed/images"},
        {"name": "c", "type": "logical", "source": {"devices": ["/dev/none"]}, "build": True},
    ]
    done = ansible("ansible-playbook", "-i", inventory, "-l", HOSTS[0], "playbooks/provision.yml", "-e", declared(*bad))
    assert done.returncode != 0
    assert "/srv/file is a file" in done.stdout
    assert "cannot pass through /srv/closed, which has mode 0700" in done.stdout
    assert "/dev/none: No such file or directory" in done.stdout
    assert re.search(r"changed=0 .*failed=1", done.stdout)


def test_check_mode_shows_what_would_be_made(inventory, ansible, declared, group, on):
    variables = declared(IMAGES, ISO, group, libvirt_storage_secrets=[SECRET])
    words = ("-l", HOSTS[1], "playbooks/provision.yml", "-e", variables, "--check", "--diff", "-vvv")
    done = ansible("ansible-playbook", "-i", inventory, *words)
    assert done.returncode == 0, done.stdout
    assert "+target/path: /srv/kvm/images\n" in done.stdout
    assert "+source/name: vg-guests\n" in done.stdout
    assert SECRET["value"] not in done.stdout + done.stderr
    assert on(HOSTS[1], "test ! -e /srv/kvm && virsh pool-list --all --name").split() == []


def test_pools_are_made_and_qemu_can_use_them(provision, group, on):
    for host in provision(IMAGES, ISO, group, libvirt_storage_secrets=[SECRET]).values():
        assert [status(host, f"storage.{name}") for name in ("active", "equal", "usable")] == ["pass"] * 3, host
        assert SECRET["value"] not in json.dumps(host)
        assert on(host["name"], "virsh pool-list --name").split() == ["images", "iso", "vg-guests"]
        assert on(host["name"], "stat -c %a:%U /srv/kvm/images /srv/kvm/iso").split() == [
            "711:root",
            "750:libvirt-qemu",
        ]
        assert on(host["name"], "vgs --noheadings -o vg_name").split() == ["vg-guests"]
        assert SECRET["value"] not in on(host["name"], "cat /etc/kvmfleet/contract.json /var/lib/kvmfleet/record.json")
        assert on(host["name"], "find /srv/kvm -type f") == ""


def test_an_edited_pool_is_changed_unless_a_guest_uses_it(provision, group, on):
    on(HOSTS[0], f'truncate -s 1M /srv/kvm/images/web.img; echo "{GUEST}" | virsh create --paused /dev/stdin')
    edited = IMAGES | {"path": "/srv/kvm/images-2"}
    try:
        (host,) = provision(edited, ISO, group, only=HOSTS[0], libvirt_storage_secrets=[SECRET]).values()
        assert "paused" in on(HOSTS[0], "virsh domstate web")
    finally:
        on(HOSTS[0], "virsh destroy web")
    assert status(host, "storage.equal") == "warn", host
    assert "images: target/path is /srv/kvm/images, not /srv/kvm/images-2" in summary(host, "storage.equal")
    (host,) = provision(edited, ISO, group, only=HOSTS[0], libvirt_storage_secrets=[SECRET]).values()
    assert status(host, "storage.equal") == "pass", host
    assert host["converged"]["changed"] == 1  # the restart that waited, and nothing else


def test_what_breaks_is_named(validate, on):
    on(HOSTS[0], "virsh pool-destroy iso; virsh pool-autostart images --disable")
    on(HOSTS[1], "chmod 0700 /srv/kvm")
    hosts = validate()
    assert status(hosts[HOSTS[0]], "storage.active") == "fail"
    assert summary(hosts[HOSTS[0]], "storage.active") == "images does not start with the host; iso is not active"
    assert status(hosts[HOSTS[1]], "storage.equal") == "pass"
    assert status(hosts[HOSTS[1]], "storage.usable") == "fail"
    assert "images: libvirt-qemu does not get through to it (EACCES)" in summary(hosts[HOSTS[1]], "storage.usable")


def test_a_mode_that_is_not_the_declared_one_explains_that_qemu_does_not_get_through(validate, on):
    on(HOSTS[1], "chmod 0755 /srv/kvm; chmod 0700 /srv/kvm/images")
    host = validate()[HOSTS[1]]
    assert status(host, "storage.equal") == "fail"
    assert summary(host, "storage.equal") == "images: mode is 0700, not 0711"
    (usable,) = (finding for finding in host["findings"] if finding["check"] == "storage.usable")
    assert (usable["status"], usable["cause"]) == ("skip", "storage.equal")


def test_what_left_the_list_goes_and_its_data_stays(provision, on):
    on(HOSTS[0], "echo data > /srv/kvm/iso/a.iso")
    for host in provision().values():
        assert status(host, "storage.active") == "skip"
        assert on(host["name"], "virsh pool-list --all --name; virsh secret-list | grep iscsi; true").split() == []
        assert on(host["name"], "vgs --noheadings -o vg_name").split() == ["vg-guests"]
    assert on(HOSTS[0], "cat /srv/kvm/iso/a.iso") == "data\n"
