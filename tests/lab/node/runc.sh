#!/bin/sh
# Stands before runc where this machine itself may not lift its limit on locked memory
# (no CAP_SYS_RESOURCE): containers that ask for more get what there is. Docker sees no difference.
# POSIX has no -H; dash has.
# shellcheck disable=SC3045
limit=$(($(ulimit -Hl) * 1024))
before=
for word; do
    case $before in
    --bundle) file=$word/config.json ;;
    --process) file=$word ;;
    *) file= ;;
    esac
    [ -z "$file" ] || sed -i -E \
        "s/(\"type\":\"RLIMIT_MEMLOCK\",\"hard\":)[0-9]+,\"soft\":[0-9]+/\1$limit,\"soft\":$limit/" \
        "$file"
    before=$word
done
exec /usr/local/lib/runc "$@"
