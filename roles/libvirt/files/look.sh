# shellcheck shell=sh
# Says in one line of JSON what libvirt's packages brought and where its units stand. Changes nothing.
# Arguments: names of units; LENS:KEY for a setting, for example libvirtd_qemu:max_files; and @GROUP.
#   units    NAME -> {enabled, active, masked}, of those that exist
#   unknown  the settings that libvirt's own description of its files, an Augeas lens, does not list; libvirt itself
#            would ignore them without a word
#   members  of the group, with commas between them
#   stale    whether a daemon runs that started before its files were written: it obeys what they said then, as after a
#            run that ended before the restart
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

started() { # PID: when, in seconds since the epoch; field 22 of proc(5)'s stat has hundredths since the boot
  echo $(($(sed -n 's/^btime //p' /proc/stat) + $(sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20) / 100))
}

stale=false
for daemon in libvirtd virtqemud virtproxyd; do
  pid=$(cat "/run/$daemon.pid" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = $daemon ] || continue
  since=$(started "$pid") || continue # it has just ended
  case $daemon in
    libvirtd) files='libvirtd qemu network' ;;
    virtqemud) files='virtqemud qemu' ;;
    *) files=$daemon ;;
  esac
  for file in $files; do
    written=$(stat -c %Y "/etc/libvirt/$file.conf" 2>/dev/null) || continue
    [ "$written" -le $((since + 2)) ] || stale=true # both were cut to whole seconds
  done
done

printf '{"units": {%s}, "unknown": [%s], "members": "%s", "stale": %s}\n' "$standing" "$unknown" "$members" "$stale"
