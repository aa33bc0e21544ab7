#!/bin/sh
# Gives every key of the second level that has no end one, so that nothing stays for ever, and says how many it found.
# Needs SENTINELS and PASSWORD_FILE; MAX_TTL is in seconds. Safe to repeat; SCAN blocks nobody.
set -eu
: "${PORT:=6379}" "${SENTINEL_PORT:=26379}" "${MAX_TTL:=86400}" "${PATTERN:=l2:*}"
REDISCLI_AUTH=$(cat "$PASSWORD_FILE")
export REDISCLI_AUTH
master=$(redis-cli -t 5 -h "$SENTINELS" -p "$SENTINEL_PORT" sentinel get-master-addr-by-name cache)
[ -n "$master" ] || { echo "no sentinel at $SENTINELS knows the master of cache" >&2 && exit 1; }
host=$(echo "$master" | head -n 1)
port=$(echo "$master" | tail -n 1)
ask() { redis-cli -t 5 -h "$host" -p "$port" "$@"; }
seen=0 bounded=0
for key in $(ask --scan --pattern "$PATTERN" --count 1000); do
  seen=$((seen + 1))
  case $(ask ttl "$key") in
    -1) ask expire "$key" "$MAX_TTL" >/dev/null && bounded=$((bounded + 1)) ;;
  esac
done
echo "$seen keys, $bounded of them had no end and have one now"
