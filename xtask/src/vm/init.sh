#!/bin/busybox sh
# First stage, from the initramfs: the host's root, the tools and the kernel's modules become the lower layers of an overlay whose upper
# layer is memory. Nothing that runs in the guest can change the host, save in the share of this run.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done </modules/order

lower=
for tag in kernel tools host; do
    mkdir "/lower/$tag"
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro "$tag" "/lower/$tag" || poweroff -f
    lower="$lower${lower:+:}/lower/$tag"
done
mount -t tmpfs -o mode=755 writable /writable
mkdir /writable/upper /writable/work
mount -t overlay -o "lowerdir=$lower,upperdir=/writable/upper,workdir=/writable/work" overlay /root || poweroff -f

mount -t tmpfs -o mode=755 run /root/run
mkdir /root/run/vm
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none share /root/run/vm || poweroff -f
for directory in dev proc sys; do mount --move "/$directory" "/root/$directory"; done
exec switch_root /root /bin/sh /run/vm/guest.sh
