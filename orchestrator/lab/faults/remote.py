"""Faults of what other machines reach libvirt through."""

from __future__ import annotations

from orchestrator.lab.faults.fault import Fault
from orchestrator.lab.faults.libvirt import LISTEN, TLS

CERTIFICATE, KEY, CA = (f"remote/certificates/*/{part}" for part in ("certificate", "key", "ca"))
SIGN = 'openssl req -x509 -newkey rsa:2048 -nodes -subj "/O=strangers/CN=$(hostname)" -keyout $kept/key -out'

FAULTS = (
    Fault(
        id="tls-stopped",
        says="libvirt does not listen for TLS.",
        check="remote.sockets",
        inject=f"systemctl stop {TLS}",
        heal=LISTEN,
        needs=("remote/sockets",),
    ),
    Fault(
        id="tls-not-at-boot",
        says="The socket for TLS is not enabled for the next boot.",
        check="remote.sockets",
        inject=f"systemctl disable {TLS}",
        heal=f"systemctl enable {TLS}",
        needs=("remote/sockets",),
    ),
    Fault(
        id="certificate-expired",
        says="The certificate that libvirt serves has expired.",
        check="remote.certificate",
        inject=f"""\
keep "$1" "$2"
{SIGN} $kept/certificate -days 2 2>/dev/null
openssl x509 -in $kept/certificate -signkey $kept/key -days -1 -out "$1" 2>/dev/null ||
  openssl req -x509 -key $kept/key -subj /CN=old -not_before 20200101000000Z -not_after 20200201000000Z -out "$1"
cat $kept/key > "$2\"""",
        heal='back "$1" "$2"',
        needs=(CERTIFICATE, KEY),
    ),
    Fault(
        id="certificate-of-strangers",
        says="The certificate that libvirt serves is of another CA than the fleet's.",
        check="remote.certificate",
        inject=f'keep "$1" "$2"\n{SIGN} "$1" -days 300 2>/dev/null\ncat $kept/key > "$2"',
        heal='back "$1" "$2"',
        needs=(CERTIFICATE, KEY),
    ),
    Fault(
        id="certificate-gone",
        says="The certificate that libvirt serves is gone.",
        check="remote.certificate",
        inject='hide "$1"',
        heal='back "$1"',
        needs=(CERTIFICATE,),
    ),
    Fault(
        id="certificate-without-its-key",
        says="The key is not the one of the certificate.",
        check="remote.certificate",
        inject='keep "$1"; openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 2>/dev/null > "$1"',
        heal='back "$1"',
        needs=(KEY,),
    ),
    Fault(
        id="key-open-to-all",
        says="Everybody may read the key of libvirt's certificate.",
        check="remote.certificate",
        inject='keep "$1"; chmod 0644 "$1"',
        heal='back "$1"',
        needs=(KEY,),
    ),
    Fault(
        id="key-of-another-user",
        says="The key of libvirt's certificate belongs to somebody else.",
        check="remote.certificate",
        inject='keep "$1"; chown nobody "$1"',
        heal='back "$1"',
        needs=(KEY,),
    ),
    Fault(
        id="ca-of-strangers",
        says="libvirt trusts another CA than the fleet's.",
        check="remote.certificate",
        inject=f'keep "$1"\n{SIGN} "$1" -days 300 2>/dev/null',
        heal='back "$1"',
        needs=(CA,),
    ),
    Fault(
        id="tls-rejected",
        says="A firewall of somebody else rejects connections to the port for TLS.",
        check="remote.reach",
        inject="nft -f - <<END\n"
        "table inet kvmfleet_drill {\n"
        "  chain drill { type filter hook input priority -50; tcp dport 16514 reject with tcp reset; }\n"
        "}\nEND",
        heal="nft delete table inet kvmfleet_drill || true",
        needs=("remote/sockets",),
    ),
)
