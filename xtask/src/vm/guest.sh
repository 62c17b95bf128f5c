# Second stage, in the file system of the host as the guest sees it: brings up soft-RoCE, runs the command, tells how it ended.
# The share has `environment` (what is set here and for the command), `command`, and takes `stdout`, `stderr` and `status`.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp LC_ALL=C.UTF-8
. /run/vm/environment

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
ulimit -n 65536
busybox hostname "guest$VM_GUEST"

# The network of the fabric: a link to the other guest, or one that leads nowhere; soft-RoCE loops back what is for itself.
modprobe -a rdma_rxe rdma_ucm ib_umad fuse
ip link set lo up
if [ "$VM_GUESTS" = 2 ]; then
    modprobe virtio_net
    link=$(basename /sys/bus/virtio/drivers/virtio_net/virtio*/net/*)
    ip link set "$link" name roce0
else
    modprobe dummy numdummies=0
    ip link add roce0 type dummy
fi
ip link set roce0 mtu 4200
ip addr add "$VM_ADDRESS/24" dev roce0
ip -6 addr add "fd09::${VM_ADDRESS##*.}/64" dev roce0 nodad
ip link set roce0 up
rdma link add rxe0 type rxe netdev roce0

# The table of addresses is filled behind our back.
for _ in $(seq 200); do
    grep -qsh "$VM_GID" /sys/class/infiniband/rxe0/ports/1/gids/[1-9] && break
    busybox usleep 10000
done

cd "$VM_DIRECTORY" || exit 1
sh /run/vm/command </dev/null >/run/vm/stdout 2>/run/vm/stderr
echo $? >/run/vm/status.new
mv /run/vm/status.new /run/vm/status
busybox poweroff -f
