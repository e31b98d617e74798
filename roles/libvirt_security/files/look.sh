# shellcheck shell=sh
# Says in one line of JSON what this host can confine guests and guard ports with. Changes nothing.
#   selinux    "enforcing", "permissive", or "" where the kernel runs without
#   apparmor   whether AppArmor is on and takes profiles; in most containers it does not
#   firewalld  whether it runs
if [ -r /sys/fs/selinux/enforce ]; then
  if [ "$(cat /sys/fs/selinux/enforce)" = 1 ]; then selinux=enforcing; else selinux=permissive; fi
else
  selinux=''
fi
if [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ] && [ -w /sys/kernel/security/apparmor/.load ]; then
  apparmor=true
else
  apparmor=false
fi
PATH=$PATH:/usr/sbin:/sbin
if command -v firewall-cmd >/dev/null && firewall-cmd --state >/dev/null 2>&1; then firewalld=true; else firewalld=false; fi
printf '{"selinux": "%s", "apparmor": %s, "firewalld": %s}\n' "$selinux" "$apparmor" "$firewalld"
