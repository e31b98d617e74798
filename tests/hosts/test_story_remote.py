"""Two hosts that reach each other over TLS: certificates, passwords, a guest that migrates live, faults that are named,
the end.

The tests of this file tell one story in order, on the lab of the other stories, and leave it as they found it.
"""

import base64
import datetime
import json
from pathlib import Path

import pytest

from plugins.plugin_utils import certificates

pytestmark = pytest.mark.hosts

HOSTS = ("story-1", "story-2")
TLS = {"libvirt_remote_transports": ["ssh", "tls"], "libvirt_remote_peers": HOSTS}
WISH = json.dumps(TLS)
ADA, BOB = {"name": "ada", "password": "stormy petrel 1"}, {"name": "bob", "password": "stormy petrel 2"}
USERS, SETTINGS = "/etc/libvirt/passwd.db", "/etc/sasl2/libvirt.conf"
CERTIFICATE, KEY = "/etc/pki/libvirt/servercert.pem", "/etc/pki/libvirt/private/serverkey.pem"
GUEST = """
<domain type="{}"><name>mover</name><memory unit="MiB">16</memory>
  <os><type arch="x86_64" machine="pc-q35-7.2">hvm</type></os>
  <cpu mode="custom" match="exact"><model fallback="forbid">kvm64</model></cpu>
  <devices><serial type="pty"/><memballoon model="none"/></devices>
</domain>
"""
VIRSH = "virsh --connect qemu:///system --quiet"


@pytest.fixture
def run(kvmfleet, inventory):
    """Runs a command on the lab; gives the exit code, the hosts of the report by name, and what it said."""

    def run(*arguments, boot="proof"):
        done = kvmfleet(*arguments, "-i", inventory, "--json", "--boot", boot)
        hosts = {host["name"]: host for host in json.loads(done.stdout)["hosts"]} if done.stdout else {}
        return done.returncode, hosts, done.stderr

    return run


@pytest.fixture
def put(on):
    """Writes a file on a host, whatever is in it."""

    def put(host, path, text):
        on(host, f"echo {base64.b64encode(text.encode()).decode()} | base64 -d > {path}")

    return put


def remote(host):
    """The findings about TLS: check to status and summary."""
    return {
        finding["check"]: (finding["status"], finding["summary"])
        for finding in host["findings"]
        if finding["check"].startswith("remote.")
    }


def test_without_a_ca_nothing_is_changed_and_the_way_to_one_is_told(run):
    code, hosts, _ = run("provision", "-e", WISH)
    assert code == 2
    for host in hosts.values():
        assert host["converged"]["changed"] == 0
        assert "kvmfleet pki init" in host["converged"]["failure"]["message"]


def with_passwords(*users):
    return json.dumps(TLS | {"libvirt_remote_sasl": "scram-sha-256", "libvirt_remote_sasl_users": users})


@pytest.fixture
def login(on, put):
    """Asks the second host's libvirt from the first, as a user, or as nobody; gives its URI or "refused"."""

    def login(name="", password=""):
        known = f"[credentials-x]\nauthname={name}\npassword={password}\n[auth-libvirt-{HOSTS[1]}]\ncredentials=x\n"
        put(HOSTS[0], "/root/auth.conf", known if name else "")
        ask = f"virsh --quiet --connect qemu+tls://{HOSTS[1]}/system uri < /dev/null || echo refused"
        said = on(HOSTS[0], f"LIBVIRT_AUTH_FILE=/root/auth.conf; export LIBVIRT_AUTH_FILE; {ask}; rm /root/auth.conf")
        return said.split()[-1]

    return login


def test_hosts_get_certificates_and_reach_each_other_while_a_guest_runs(kvmfleet, run, on, put):
    up = kvmfleet("lab", "up", "story", "--boot", "none")  # whatever the stories before left
    assert " 2 unknown" in up.stdout, up.stdout + up.stderr
    offered = on(HOSTS[1], f"{VIRSH} capabilities")
    put(
        HOSTS[0], "/root/mover.xml", GUEST.format("kvm" if 'domain type="kvm"' in offered.replace("'", '"') else "qemu")
    )
    on(HOSTS[0], f"{VIRSH} create /root/mover.xml")

    for host in HOSTS:
        on(host, f"cp --preserve {SETTINGS} /root/settings-before")
    assert kvmfleet("pki", "init").returncode == 0
    code, hosts, stderr = run("provision", "-e", with_passwords(ADA, BOB))
    assert code == 0, stderr
    for host in hosts.values():
        assert {status for status, _ in remote(host).values()} == {"pass"}, remote(host)
        assert len(remote(host)) == 4
    assert on(HOSTS[0], f"{VIRSH} list --name").split() == ["mover"]
    issued = json.loads(kvmfleet("pki", "status", "--json").stdout)["issued"]
    assert sorted((one["host"], one["for"]) for one in issued) == [
        (host, purpose) for host in HOSTS for purpose in ("libvirt", "qemu")
    ]


def test_the_second_provision_changes_nothing(run):
    _, hosts, _ = run("provision", "-e", with_passwords(ADA, BOB), "--force")
    assert [host["converged"]["changed"] for host in hosts.values()] == [0, 0]


def test_who_has_a_certificate_needs_a_password_as_well(login):
    for user in (ADA, BOB):
        assert login(**user) == f"qemu+tls://{HOSTS[1]}/system"
    assert login("ada", BOB["password"]) == login("eve", ADA["password"]) == login() == "refused"


def test_passwords_that_others_read_and_a_user_who_is_gone_are_named(run, on):
    on(HOSTS[0], f"chmod 644 {USERS}")
    on(HOSTS[1], f"saslpasswd2 -a libvirt -f {USERS} -d ada")
    code, hosts, _ = run("validate", boot="none")
    assert code == 2
    (readable, gone) = (remote(hosts[name])["remote.sasl"] for name in HOSTS)
    assert readable == ("fail", f"{USERS} can be read by others: mode 0644, owner root")
    assert gone == ("fail", f"not in {USERS}, and cannot log in: ada")


def test_a_new_password_counts_and_a_user_who_left_is_out(run, on, login, environment):
    new = ADA | {"password": "stormy petrel 3"}
    code, hosts, stderr = run("provision", "-v", "-e", with_passwords(new))
    assert code == 0, stderr
    for name, host in hosts.items():
        assert host["converged"]["changed"] == 2, "the database, and the contract with its users"
        assert remote(host)["remote.sasl"][0] == "pass"
        kept = on(name, "grep -rls stor[m]y /etc /var/lib/kvmfleet /var/log /var/tmp /tmp /root; true")
        assert kept == "", "no password is on a host"
        assert on(name, f"stat --format=%a:%U {USERS}").strip() == "600:root"
    assert login(**new) == f"qemu+tls://{HOSTS[1]}/system"
    assert login(**ADA) == login(**BOB) == "refused"
    kept = [
        path for path in Path(environment["KVMFLEET_STATE_DIR"]).glob("*.sqlite3*") if b"stormy" in path.read_bytes()
    ]
    assert not kept
    assert "stormy" not in json.dumps(hosts) + stderr


def test_without_passwords_their_places_are_as_they_were(run, on, login):
    code, hosts, stderr = run("provision", "-e", WISH)
    assert code == 0, stderr
    for name, host in hosts.items():
        assert remote(host)["remote.sasl"][0] == "skip"
        assert on(name, f"cmp {SETTINGS} /root/settings-before; ls {USERS} /var/lib/kvmfleet/sasl.json || true") == ""
    assert login() == f"qemu+tls://{HOSTS[1]}/system"


def test_the_guest_migrates_live_over_tls(on):
    on(HOSTS[0], f"{VIRSH} migrate --live --p2p --tls mover qemu+tls://{HOSTS[1]}/system")
    assert on(HOSTS[0], f"{VIRSH} list --all --name").split() == []
    assert on(HOSTS[1], f"{VIRSH} domstate mover").strip() == "running"
    on(HOSTS[1], f"{VIRSH} destroy mover")


def test_qemu_has_no_key_that_opens_libvirt(on):
    """A guest that breaks out is the user of QEMU, and its certificate is one of the same CA."""
    on(HOSTS[0], "mkdir -p /root/pki && cd /root/pki && cp /etc/pki/qemu/ca-cert.pem cacert.pem && "
       "cp /etc/pki/qemu/client-cert.pem clientcert.pem && cp /etc/pki/qemu/client-key.pem clientkey.pem")  # fmt: skip
    for pki, answer in ("", f"qemu+tls://{HOSTS[1]}/system"), ("?pkipath=/root/pki", "refused"):
        said = on(HOSTS[0], f"virsh --connect qemu+tls://{HOSTS[1]}/system{pki} uri || echo refused")
        assert said.strip().startswith(answer), said


@pytest.fixture
def ca(environment):
    return certificates.Authority(str(Path(environment["KVMFLEET_STATE_DIR"]) / "pki"))


def test_an_expired_certificate_and_a_key_that_others_read_are_named(run, on, put, ca):
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=40)
    request = on(HOSTS[0], f"openssl req -new -key {KEY} -subj /CN=anything")
    put(HOSTS[0], CERTIFICATE, ca.sign(request, HOSTS[0], "libvirt", list(HOSTS), 30, now=past))
    on(HOSTS[1], f"chmod 644 {KEY}")
    code, hosts, _ = run("validate", boot="none")
    assert code == 2
    (expired, readable) = (remote(hosts[name])["remote.certificate"] for name in HOSTS)
    assert expired[0] == readable[0] == "fail"
    assert f"{CERTIFICATE} expired on" in expired[1]
    assert "others can read" in readable[1]


def test_a_certificate_of_ones_own_that_expired_stops_before_any_change(run):
    own = {"ca_certificate": "/etc/pki/CA/cacert.pem", "certificate": CERTIFICATE, "key": KEY}
    more = json.dumps({f"libvirt_remote_{name}": path for name, path in own.items()})
    _, hosts, _ = run("provision", "-e", WISH, "-e", more, "-l", HOSTS[0], boot="none")
    converged = hosts[HOSTS[0]]["converged"]
    assert f"{CERTIFICATE} expired on" in converged["failure"]["message"]
    assert converged["changed"] == 0


def test_rotating_gives_new_keys_and_heals_in_one_command(run, on):
    digest = f"sha256sum {KEY}"
    before = [on(host, digest) for host in HOSTS]
    code, hosts, stderr = run("pki", "rotate", "-e", WISH)
    assert code == 0, stderr
    for host in hosts.values():
        found = {check: status for check, (status, _) in remote(host).items()}
        assert found.pop("remote.sasl") == "skip"
        assert set(found.values()) == {"pass"}, remote(host)
    assert set(before).isdisjoint(on(host, digest) for host in HOSTS)
    assert on(HOSTS[1], f"stat --format=%a {KEY}").strip() == "400"


def test_a_host_that_shuts_its_port_is_named_by_itself_and_by_its_peer(run, on):
    on(HOSTS[1], "systemctl disable --quiet --now libvirtd-tls.socket; systemctl stop libvirtd")
    _, hosts, _ = run("validate", boot="none")
    assert remote(hosts[HOSTS[1]])["remote.sockets"][0] == "fail"
    assert remote(hosts[HOSTS[0]])["remote.reach"] == (
        "warn",
        f"not reached over TLS: {HOSTS[1]}: Connection refused",
    )


def test_without_tls_everything_is_as_it_was(run, on):
    code, hosts, stderr = run("provision")
    assert code == 0, stderr
    for name, host in hosts.items():
        assert {status for status, _ in remote(host).values()} == {"skip"}
        assert on(name, "find /etc/pki -type f 2>/dev/null; ss -Hltn sport = :16514").strip() == ""
        assert on(name, "systemctl is-enabled libvirtd-tls.socket || true").strip() == "disabled"
