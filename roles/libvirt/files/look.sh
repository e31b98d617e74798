# shellcheck shell=sh
# Says in one line of JSON what libvirt's packages brought and where its units stand. Changes nothing.
# Arguments: names of units; LENS:KEY for a setting, for example libvirtd_qemu:max_files; and @GROUP.
#   units    NAME -> {enabled, active, masked}, of those that exist
#   unknown  the settings that libvirt's own description of its files, an Augeas lens, does not list; libvirt itself
#            would ignore them without a word
#   members  of the group, with commas between them
#   stale    whether a daemon runs that started before what it reads at its start alone: its files, drivers of storage
#            that have a package of their own, and the mounts of hugepages; as after a run that ended before the restart
units='' unknown='' members=''
for argument in "$@"; do
  lens=/usr/share/augeas/lenses/${argument%%:*}.aug
  case $argument in
  @*) members=$(getent group "${argument#@}" | cut -d: -f4) ;;
  *:*) [ ! -e "$lens" ] || grep -q "\"${argument#*:}\"" "$lens" || unknown="$unknown${unknown:+, }\"${argument#*:}\"" ;;
  *) units="$units $argument" ;;
  esac
done

# shellcheck disable=SC2086 # names of units hold no blanks
if command -v systemctl >/dev/null 2>&1; then
  shown=$(systemctl show --property=Id,LoadState,UnitFileState,ActiveState -- $units) || exit # it has said why
  standing=$(echo "$shown" | awk -F= '
    function flush() {
      if (unit["LoadState"] == "loaded" || unit["LoadState"] == "masked") {
        printf "%s\"%s\": {\"enabled\": %s, \"active\": %s, \"masked\": %s}", separator, unit["Id"],
          unit["UnitFileState"] == "enabled" ? "true" : "false", unit["ActiveState"] == "active" ? "true" : "false",
          unit["LoadState"] == "masked" ? "true" : "false"
        separator = ", "
      }
      split("", unit)
    }
    NF == 0 { flush(); next }
    { unit[$1] = $2 }
    END { flush() }')
else # OpenRC
  standing=$(for unit in $units; do
    rc-service --exists "$unit" || continue
    if rc-update show default | grep -qw "$unit"; then enabled=true; else enabled=false; fi
    if rc-service --quiet "$unit" status >/dev/null 2>&1; then active=true; else active=false; fi
    printf '%s"%s": {"enabled": %s, "active": %s}' "$separator" "$unit" "$enabled" "$active"
    separator=', '
  done)
fi

# In hundredths of a second since the boot, as field 22 of proc(5)'s stat; "" where nothing is mounted.
mounted=$(systemctl show --property=ActiveEnterTimestampMonotonic 'dev-hugepages*.mount' 2>/dev/null |
  sed -n 's/^.*=\([0-9][0-9]*\)[0-9]\{4\}$/\1/p' | sort -n | tail -n 1)
booted=$(sed -n 's/^btime //p' /proc/stat)
etc=/etc/libvirt
stale=false
for daemon in libvirtd virtqemud virtproxyd; do
  pid=$(cat "/run/$daemon.pid" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = $daemon ] || continue
  started=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | cut -d' ' -f20)
  [ -n "$started" ] || continue # it has just ended
  case $daemon in
    libvirtd) set -- $etc/libvirtd.conf $etc/qemu.conf $etc/network.conf /usr/lib/*/libvirt/storage-backend ;;
    virtqemud) set -- $etc/virtqemud.conf $etc/qemu.conf ;;
    *) set -- $etc/$daemon.conf ;;
  esac
  for path in "$@"; do
    written=$(stat -c %Y "$path" 2>/dev/null) || continue
    [ "$written" -le $((booted + started / 100 + 2)) ] || stale=true # both were cut to whole seconds
  done
  [ $daemon = virtproxyd ] || [ "${mounted:-0}" -le "$started" ] || stale=true
done

printf '{"units": {%s}, "unknown": [%s], "members": "%s", "stale": %s}\n' "$standing" "$unknown" "$members" "$stale"
