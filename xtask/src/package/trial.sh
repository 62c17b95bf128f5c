# Runs as root in a clean Debian that systemd has booted, with the package installed: what an operator does.
# /root/trial.env has FILER, SUM_LARGE, SUM_SMALL. Writes a line for each check to /root/trial.
set -u
. /root/trial.env
exec 2>&1

# check WHAT COMMAND…: the command must succeed.
check() {
    what=$1
    shift
    if said=$("$@"); then
        echo "ok $what"
    else
        echo "FAILED $what: exit code $?: $said"
    fi >>/root/trial
}
has() { test "$(sha256sum <"$1" | cut -d' ' -f1)" = "$2"; }
is_gone() { ! findmnt "$1"; }
main_process() { systemctl show --property MainPID --value "$1"; }
kill_worker() {
    main=$(main_process "$1")
    kill -KILL $(cat "/proc/$main/task/$main/children")
}
is_restarted() {
    for _ in $(seq 100); do
        if systemctl --quiet is-active "$1" && test "$(main_process "$1")" != "$2"; then return 0; fi
        sleep 0.1
    done
    return 1
}

check "fstab: mounted at boot" findmnt --types fuse.interceptor /mnt/fstab
check "fstab: a large file" has /mnt/fstab/large "$SUM_LARGE"
check "fstab: a small file" has /mnt/fstab/small "$SUM_SMALL"
check "fstab: umount" umount /mnt/fstab
check "fstab: mount -a" mount -a
check "fstab: after mount -a" has /mnt/fstab/large "$SUM_LARGE"
check "fstab: interceptor unmount" interceptor unmount /mnt/fstab
check "fstab: nothing is left" is_gone /mnt/fstab
check "doctor" interceptor doctor --filer "$FILER" --filer-path /data

check "interceptor@: start" systemctl start interceptor@mnt-unit
check "interceptor@: a large file" has /mnt/unit/large "$SUM_LARGE"
check "interceptor@: in the list" interceptor list
check "interceptor@: reload" systemctl reload interceptor@mnt-unit
check "interceptor@: after reload" has /mnt/unit/large "$SUM_LARGE"
check "interceptor@: kill -9 of its worker" kill_worker interceptor@mnt-unit
check "interceptor@: after that" has /mnt/unit/small "$SUM_SMALL"
before=$(main_process interceptor@mnt-unit)
check "interceptor@: kill -9 of both" systemctl kill --signal KILL interceptor@mnt-unit
check "interceptor@: is started anew" is_restarted interceptor@mnt-unit "$before"
check "interceptor@: after that" has /mnt/unit/large "$SUM_LARGE"

check "interceptor-attach@: what is below" cp /mnt/unit/small /mnt/layer
check "interceptor-attach@: start" systemctl start interceptor-attach@mnt-layer
check "interceptor-attach@: is a layer" findmnt --types fuse.interceptor-attach /mnt/layer
check "interceptor-attach@: a file" has /mnt/layer/small "$SUM_SMALL"
check "interceptor-attach@: in the list" interceptor status /mnt/layer
check "interceptor-attach@: stop" systemctl stop interceptor-attach@mnt-layer
check "interceptor-attach@: nothing of it is left" findmnt --types tmpfs /mnt/layer
check "interceptor-attach@: the file below" has /mnt/layer/small "$SUM_SMALL"
check "interceptor@: stop" systemctl stop interceptor@mnt-unit
check "interceptor@: nothing is left" is_gone /mnt/unit

check "rdma-engine: start" systemctl start rdma-engine
check "rdma-engine: is active" systemctl is-active rdma-engine
check "rdma-engine: stop" systemctl stop rdma-engine

for unit in interceptor@mnt-unit interceptor-attach@mnt-layer rdma-engine; do
    check "$unit: its file" systemd-analyze verify --man=no "$unit.service"
    systemd-analyze --no-pager security "$unit.service" | sed -n 's/.*\(Overall exposure level.*\)/note \1/p' >>/root/trial
done
check "nothing has failed" test -z "$(systemctl --failed --no-legend)"
journalctl --no-pager --output cat --unit 'interceptor*' --unit rdma-engine >/root/journal
echo end >>/root/trial
