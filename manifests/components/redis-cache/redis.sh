#!/bin/sh
# Starts Redis as a follower of the master that the sentinels know, or, when none knows one, of the first pod.
# NODE is this pod's name, NODES the domain of all, PASSWORD_FILE holds the password.
set -eu
: "${CONF:=/settings/redis.conf}" "${HOME_DIR:=/data}" "${PORT:=6379}" "${SENTINEL_PORT:=26379}"
password=$(cat "$PASSWORD_FILE")
own=$NODE.$NODES
master=$(for _ in 1 2 3; do
  found=$(redis-cli -t 2 -h "$SENTINELS" -p "$SENTINEL_PORT" --no-auth-warning -a "$password" \
    sentinel get-master-addr-by-name cache 2>/dev/null | head -n 1 || true)
  case $found in "" | ERR* | *"No such"* | NOAUTH* | WRONGPASS*) sleep 1 ;; *) echo "$found" && break ;; esac
done)
: "${master:=${NODE%-*}-0.$NODES}"
umask 077
cp "$CONF" "$HOME_DIR/redis.conf"
{
  echo "dir $HOME_DIR"
  echo "port $PORT"
  echo "requirepass $password"
  echo "masterauth $password"
  echo "replica-announce-ip $own"
  echo "replica-announce-port $PORT"
  [ "$master" = "$own" ] || echo "replicaof $master $PORT"
} >>"$HOME_DIR/redis.conf"
exec redis-server "$HOME_DIR/redis.conf"
