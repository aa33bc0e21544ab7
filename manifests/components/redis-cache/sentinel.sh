#!/bin/sh
# Starts a sentinel that watches the master the others know, or the first pod.
set -eu
: "${CONF:=/settings/sentinel.conf}" "${HOME_DIR:=/data}" "${PORT:=6379}" "${SENTINEL_PORT:=26379}"
password=$(cat "$PASSWORD_FILE")
found=$(redis-cli -t 2 -h "$SENTINELS" -p "$SENTINEL_PORT" --no-auth-warning -a "$password" \
  sentinel get-master-addr-by-name cache 2>/dev/null | head -n 1 || true)
case $found in "" | ERR* | *"No such"* | NOAUTH* | WRONGPASS*) found=${NODE%-*}-0.$NODES ;; esac
until redis-cli -t 2 -h "$found" -p "$PORT" --no-auth-warning -a "$password" ping >/dev/null 2>&1; do sleep 1; done
umask 077
cp "$CONF" "$HOME_DIR/sentinel.conf"
{
  echo "dir $HOME_DIR"
  echo "port $SENTINEL_PORT"
  echo "requirepass $password"
  echo "sentinel sentinel-pass $password"
  echo "sentinel announce-ip $NODE.$NODES"
  echo "sentinel announce-port $SENTINEL_PORT"
  echo "sentinel monitor cache $found $PORT 2"
  echo "sentinel auth-pass cache $password"
  echo "sentinel down-after-milliseconds cache 5000"
  echo "sentinel failover-timeout cache 30000"
  echo "sentinel parallel-syncs cache 1"
} >>"$HOME_DIR/sentinel.conf"
exec redis-sentinel "$HOME_DIR/sentinel.conf"
