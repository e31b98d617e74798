# shellcheck shell=sh
# Reboots, unless guests run: looked for here and now, because one may have been started since anybody looked last. A
# QEMU without KVM is a guest as well. The argument "disrupt" lets guests be ended.
PATH=${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin

if [ "$1" != disrupt ]; then
  # shellcheck disable=SC2010 # it is where the links lead to that counts
  ls -l /proc/[0-9]*/fd /proc/[0-9]*/exe 2>/dev/null |
    grep -Eq -e '-> anon_inode:kvm-vm$' -e '-> .*/(qemu-system-[a-z0-9_]+|qemu-kvm)( \(deleted\))?$'
  case $? in
    0) echo 'guests run' && exit 3 ;;
    1) ;; # only this says that there is none
    *) echo 'cannot tell whether guests run' && exit 4 ;;
  esac
fi
if command -v shutdown >/dev/null; then exec shutdown -r now; else exec reboot; fi
