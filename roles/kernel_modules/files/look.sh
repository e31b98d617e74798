# shellcheck shell=sh
# Says in one line of JSON what this kernel can do for KVM. Changes nothing. Arguments: the modules to look for, and
# the options that they should have, as MODULE.OPTION=VALUE.
#   kernel              its release
#   cpu                 "vmx", "svm", or "" when the processor shows neither flag
#   node                whether /dev/kvm opens for reading and writing: the driver's own answer, whatever the flags say
#   loadable, absent    which of the modules this kernel can load, or does not have; the others are loaded or built in
#   stale               whether one of the options is live with another value
#   arguments           whether the record of kernel arguments is there, so that some may have to go
release=$(uname -r)
tree=/lib/modules/$release

live() { # NAME PATTERN
  [ -d "/sys/module/$1" ] ||
    grep -qs " $2\$" /proc/misc || # tells of built-in drivers where there is no /sys/module
    grep -qs "/$2\.ko" "$tree/modules.builtin"
}

differs() { # MODULE.OPTION=VALUE
  option=${1%%=*} wished=${1#*=}
  now=$(cat "/sys/module/${option%%.*}/parameters/${option#*.}" 2>/dev/null) || return 1 # absent, or not shown
  case $now in Y) now=1 ;; N) now=0 ;; esac
  case $wished in Y | y) wished=1 ;; N | n) wished=0 ;; esac
  [ "$now" != "$wished" ]
}

loadable='' absent='' stale=false
for module in "$@"; do
  case $module in
    *=*)
      ! differs "$module" || stale=true
      continue
      ;;
  esac
  pattern=$(echo "$module" | sed 's/_/[-_]/g') # kvm_intel is kvm-intel.ko on disk
  if live "$module" "$pattern"; then
    continue
  elif grep -qs "/$pattern\.ko[.a-z0-9]*:" "$tree/modules.dep"; then
    loadable="$loadable${loadable:+, }\"$module\""
  else
    absent="$absent${absent:+, }\"$module\""
  fi
done

cpu=$(grep -m1 -ow -e vmx -e svm /proc/cpuinfo | head -n1)
if [ -c /dev/kvm ] && (: <>/dev/kvm) 2>/dev/null; then node=true; else node=false; fi
if [ -e /etc/kvmfleet/kernel-arguments.json ]; then arguments=true; else arguments=false; fi

printf '{"kernel": "%s", "cpu": "%s", "node": %s, "loadable": [%s], "absent": [%s], ' \
  "$release" "$cpu" "$node" "$loadable" "$absent"
printf '"stale": %s, "arguments": %s}\n' "$stale" "$arguments"
