# shellcheck shell=sh
# Says in one line of JSON what this kernel can do for KVM. Changes nothing. Arguments: the modules to look for.
#   kernel              its release
#   cpu                 "vmx", "svm", or "" when the processor shows neither flag
#   node                whether /dev/kvm opens for reading and writing: the driver's own answer, whatever the flags say
#   loadable, absent    which of the modules this kernel can load, or does not have; the others are loaded or built in
#   no_folder           the folders for the configuration of modules that a bare image lacks
release=$(uname -r)
tree=/lib/modules/$release

live() { # NAME PATTERN
  [ -d "/sys/module/$1" ] ||
    grep -qs " $2\$" /proc/misc || # tells of built-in drivers where there is no /sys/module
    grep -qs "/$2\.ko" "$tree/modules.builtin"
}

loadable='' absent=''
for module in "$@"; do
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

no_folder=
for folder in /etc/modprobe.d /etc/modules-load.d; do
  [ -d "$folder" ] || no_folder="$no_folder${no_folder:+, }\"$folder\""
done

printf '{"kernel": "%s", "cpu": "%s", "node": %s, "loadable": [%s], "absent": [%s], "no_folder": [%s]}\n' \
  "$release" "$cpu" "$node" "$loadable" "$absent" "$no_folder"
