"""Faults of storage pools."""

from __future__ import annotations

from orchestrator.lab.faults.fault import Fault
from orchestrator.lab.faults.network import VIRSH

POOL = ("pools",)
FOLDER = ("pools", "pools/*/path")
DUMP = f'{VIRSH} pool-dumpxml --inactive "$1" > $kept/pool.xml'
AGAIN = f'{VIRSH} pool-define $kept/pool.xml; {VIRSH} pool-autostart "$1"'
UNCOVER = 'mountpoint -q "$2" && umount "$2" || true'

FAULTS = (
    Fault(
        id="pool-stopped",
        says="A storage pool of the contract is not active.",
        check="storage.active",
        inject=f'{VIRSH} pool-destroy "$1"',
        heal=f'{VIRSH} pool-start "$1" || true',
        needs=POOL,
    ),
    Fault(
        id="pool-not-at-boot",
        says="A storage pool of the contract does not start with the host.",
        check="storage.active",
        inject=f'{VIRSH} pool-autostart --disable "$1"',
        heal=f'{VIRSH} pool-autostart "$1"',
        needs=POOL,
    ),
    Fault(
        id="pool-gone",
        says="A storage pool of the contract was removed; its data is still there.",
        check="storage.active",
        inject=f'{DUMP}; {VIRSH} pool-destroy "$1"; {VIRSH} pool-undefine "$1"',
        heal=f'{AGAIN}; {VIRSH} pool-start "$1" || true',
        needs=POOL,
    ),
    Fault(
        id="pool-edited",
        says="Somebody pointed the definition of a storage pool at another folder, for its next start.",
        check="storage.equal",
        inject=f'{DUMP}; sed "s|<path>.*</path>|<path>/srv/elsewhere</path>|" $kept/pool.xml > $kept/edited.xml\n'
        f"{VIRSH} pool-define $kept/edited.xml",
        heal=AGAIN,
        needs=POOL,
    ),
    Fault(
        id="pool-folder-closed",
        says="Only root gets into the folder of a storage pool.",
        check="storage.equal",
        inject='stat -c %a "$2" > $kept/mode; chmod 0700 "$2"',
        heal='chmod $(cat $kept/mode) "$2"',
        needs=FOLDER,
    ),
    Fault(
        id="pool-folder-open-to-all",
        says="Everybody may put files into the folder of a storage pool.",
        check="storage.equal",
        inject='stat -c %a "$2" > $kept/mode; chmod 0777 "$2"',
        heal='chmod $(cat $kept/mode) "$2"',
        needs=FOLDER,
    ),
    Fault(
        id="pool-out-of-reach",
        says="A folder on the way to a storage pool lets nobody but root through.",
        check="storage.usable",
        inject='stat -c %a "${2%/*}" > $kept/mode; chmod 0700 "${2%/*}"',
        heal='chmod $(cat $kept/mode) "${2%/*}"',
        needs=FOLDER,
    ),
    Fault(
        id="pool-read-only",
        says="The file system of a storage pool is read-only.",
        check="storage.usable",
        inject='mount --bind "$2" "$2"; mount -o remount,bind,ro "$2"',
        heal=UNCOVER,
        needs=FOLDER,
    ),
    Fault(
        id="pool-full",
        says="A storage pool has no space left.",
        check="storage.space",
        inject='mode=$(stat -c %a "$2"); mount -t tmpfs -o size=8m,mode=$mode drill "$2"\n'
        f'head -c 8100000 /dev/zero > "$2/filler"; {VIRSH} pool-refresh "$1"',
        heal=f'{UNCOVER}; {VIRSH} pool-refresh "$1"',
        needs=FOLDER,
    ),
    Fault(
        id="pool-without-inodes",
        says="A storage pool takes no new files, although there is space.",
        check="storage.inodes",
        inject='mount -t tmpfs -o nr_inodes=2,mode=$(stat -c %a "$2") drill "$2"; touch "$2/filler" || true',
        heal=UNCOVER,
        needs=FOLDER,
    ),
    Fault(
        id="pool-folder-gone",
        says="The folder of a storage pool is gone.",
        check="storage.usable",
        inject='mv "$2" "$2.drill"',
        heal='[ ! -e "$2.drill" ] || mv -T "$2.drill" "$2"',
        needs=FOLDER,
    ),
)
