"""Faults of libvirt's daemons: their units, their settings, and whom they let in."""

from __future__ import annotations

from orchestrator.lab.faults.fault import Fault

SOCKETS = "libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket"
TLS = "libvirtd-tls.socket"
UNITS = f"libvirtd.service {SOCKETS} {TLS}"
OTHERS = "systemctl is-enabled --quiet libvirtd-tls.socket && systemctl start libvirtd-tls.socket || true"
FORGET = "systemctl reset-failed libvirtd.service 2>/dev/null || true"
LISTEN = f"systemctl stop libvirtd.service; {FORGET}; systemctl start {SOCKETS}; {OTHERS}"
"""A socket does not start while its service runs. A daemon that is stopped soon after its start can hang for 30 s and
then fails (libvirt 11.3), which would be shown until a client starts it again."""

DAEMON, QEMU = "/etc/libvirt/libvirtd.conf", "/etc/libvirt/qemu.conf"
PROGRAM = "/usr/sbin/libvirtd"
PID = "pid=$(systemctl show -P MainPID libvirtd.service)"
RUNNING = "virsh -c qemu:///system version >/dev/null"  # wakes an idle daemon
OTHER_FAMILY = "/etc/systemd/system/virtqemud.socket /etc/systemd/system/virtqemud.service"

FAULTS = (
    Fault(
        id="libvirt-stopped",
        says="The daemon and all its sockets are stopped.",
        check="libvirt.daemon",
        inject=f"systemctl stop {UNITS}",
        heal=LISTEN,
    ),
    Fault(
        id="libvirt-masked",
        says="Somebody masked the daemon and its sockets.",
        check="libvirt.daemon",
        inject=f"systemctl stop {UNITS}; systemctl mask --runtime libvirtd.service {SOCKETS}",
        heal=f"systemctl unmask --runtime libvirtd.service {SOCKETS}; {LISTEN}",
    ),
    Fault(
        id="libvirt-both-families",
        says="The modular daemon listens beside the monolithic one.",
        check="libvirt.daemon",
        inject="""\
for unit in socket service; do
  file=/etc/systemd/system/virtqemud.$unit
  if [ -L $file ]; then hide $file; fi
done
cat > /etc/systemd/system/virtqemud.socket <<END
[Socket]
ListenStream=/run/kvmfleet-drill-sock
RemoveOnStop=yes
END
cat > /etc/systemd/system/virtqemud.service <<END
[Service]
ExecStart=/bin/sleep 120
END
systemctl daemon-reload
systemctl start virtqemud.socket""",
        heal=f"""\
systemctl stop virtqemud.socket virtqemud.service
rm -f {OTHER_FAMILY}
back {OTHER_FAMILY}
systemctl daemon-reload""",
    ),
    Fault(
        id="libvirt-socket-closed",
        says="The socket for looking does not listen.",
        check="libvirt.sockets",
        inject="systemctl stop libvirtd-ro.socket",
        heal=LISTEN,
    ),
    Fault(
        id="libvirt-not-at-boot",
        says="The daemon's socket is not enabled for the next boot.",
        check="libvirt.sockets",
        inject="systemctl disable libvirtd.socket",
        heal="systemctl enable libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service",
    ),
    Fault(
        id="libvirt-socket-gone",
        says="The file of the daemon's socket was removed while systemd believes that it listens.",
        check="libvirt.connect",
        inject="rm /run/libvirt/libvirt-sock",
        heal=f"systemctl stop libvirtd.service {SOCKETS}; {LISTEN}",
    ),
    Fault(
        id="libvirt-hung",
        says="The daemon hangs: its socket takes connections, and nobody answers.",
        check="libvirt.connect",
        inject=f"{RUNNING}; systemctl kill --signal=STOP libvirtd.service",
        heal="systemctl kill --signal=CONT libvirtd.service",
    ),
    Fault(
        id="libvirt-replaced",
        says="The daemon's program was replaced, as by an upgrade, and the old one still runs.",
        check="libvirt.current",
        inject=f"{RUNNING}; keep {PROGRAM}; cp -a {PROGRAM} {PROGRAM}.new; mv -f {PROGRAM}.new {PROGRAM}",
        heal=f"back {PROGRAM}; {LISTEN}",
    ),
    Fault(
        id="libvirt-few-files",
        says="The daemon may open so few more files that it starts no guest.",
        check="limits.files",
        inject=f"{RUNNING}; {PID}\nprlimit --pid $pid --nofile=$(($(ls /proc/$pid/fd | wc -l) + 8))",
        heal=LISTEN,
    ),
    Fault(
        id="unit-failed",
        says="A unit of QEMU's failed.",
        check="upkeep.units",
        inject="systemd-run --quiet --wait --unit=qemu-drill false || systemctl is-failed --quiet qemu-drill.service",
        heal="systemctl reset-failed qemu-drill.service || true",
    ),
    Fault(
        id="libvirt-old-library",
        says="A library was replaced, as by an upgrade, and the daemon still runs with the old one.",
        check="upkeep.libraries",
        inject=f"""\
{RUNNING}; {PID}
libraries() {{ sed -n 's|.* r-xp .* \\(/[^ ]*[.]so[^ ]*\\)$|\\1|p' /proc/$1/maps | sort -u; }}
libraries "$(systemctl show -P MainPID virtlogd.service)" > $kept/others 2>/dev/null || true
library=$(libraries $pid | grep -v libvirt | grep -vxFf $kept/others | head -n 1)
cp -a "$library" "$library.new"; mv -f "$library.new" "$library\"""",
        heal=LISTEN,
    ),
    Fault(
        id="libvirt-does-not-start",
        says="A line of the daemon's configuration makes no sense; it died so often that systemd closed its socket.",
        check="libvirt.daemon",
        inject=f"keep {DAEMON}; echo 'max_workers = \"many' >> {DAEMON}; systemctl restart libvirtd.service || true\n"
        "for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do\n"
        f"  if systemctl is-failed --quiet libvirtd.socket; then break; fi; {RUNNING} 2>&1 || sleep 0.3\ndone\n"
        "systemctl is-failed --quiet libvirtd.socket",
        heal=f"back {DAEMON}; systemctl reset-failed libvirtd.service {SOCKETS} {TLS} 2>/dev/null || true; {LISTEN}",
    ),
    Fault(
        id="libvirt-setting-changed",
        says="Somebody changed a setting of the contract in the daemon's file.",
        check="libvirt.settings",
        inject=f"keep {DAEMON}; sed -i 's/^max_clients *=.*/max_clients = 7/' {DAEMON}; grep -q '= 7$' {DAEMON}",
        heal=f"back {DAEMON}",
        needs=("libvirt/settings/libvirtd.conf/max_clients",),
    ),
    Fault(
        id="qemu-setting-gone",
        says="A setting of the contract is missing in QEMU's file.",
        check="libvirt.settings",
        inject=f"keep {QEMU}; sed -i '/^dump_guest_core/d' {QEMU}",
        heal=f"back {QEMU}",
        needs=("libvirt/settings/qemu.conf/dump_guest_core",),
    ),
    Fault(
        id="libvirt-settings-not-read",
        says="QEMU's file was written after the daemon's start, which obeys the old one.",
        check="libvirt.settings",
        inject=f"{RUNNING}; keep {QEMU}; touch -d '+10 seconds' {QEMU}",
        heal=f"back {QEMU}",
    ),
    Fault(
        id="libvirt-user-left",
        says="A user of the contract is not in libvirt's group any more.",
        check="libvirt.users",
        inject='gpasswd -d "$1" libvirt',
        heal='usermod -aG libvirt "$1"',
        needs=("libvirt/users",),
    ),
)
