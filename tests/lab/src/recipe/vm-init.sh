#!/bin/sh
# Init of the lab VM: mounts what a booted system has, runs the job of the share "job" and says
# on the ports lab.out and lab.err that it has ended, with its exit status. Loads no module and
# configures no link except lo (and the network card to the machine, where one was asked for).
export PATH=/job/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C.UTF-8
umask 022
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm /dev/net
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /run/netns /run/lock
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
# Without udev, the nodes that make the kernel load their module are made here.
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
[ -e /dev/vhost-net ] || mknod /dev/vhost-net c 10 238
# vhost_vdpa pins all memory of a guest.
ulimit -l unlimited
hostname lab
ip link set lo up

token= tty= net=
read -r arguments < /proc/cmdline
for argument in $arguments; do
    case $argument in
        lab.token=*) token=${argument#*=} ;;
        lab.tty=*) tty=${argument#*=} ;;
        lab.net=*) net=${argument#*=} ;;
    esac
done
for port in /sys/class/virtio-ports/*; do
    [ -e "$port/name" ] || continue
    read -r name < "$port/name"
    case $name in
        lab.out) out=/dev/${port##*/} ;;
        lab.err) err=/dev/${port##*/} ;;
    esac
done

mkdir -p /job /out /share
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro job /job
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=none out /out
if grep -q share /sys/bus/virtio/drivers/9pnet_virtio/virtio*/mount_tag 2> /dev/null; then
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=mmap share /share
fi
if [ -n "$net" ]; then
    modprobe virtio_net
    for link in /sys/class/net/*; do
        if [ "$(cat "$link/address")" = "$net" ]; then
            ip link set "${link##*/}" name machine
            ip link set machine up
            ip addr add 10.0.2.15/24 dev machine
        fi
    done
fi

cd /root
exec 4> "$err"
if [ -n "$tty" ]; then
    stty -F /dev/hvc0 rows "${tty%x*}" cols "${tty#*x}"
    setsid -c sh /job/run < /dev/hvc0 > /dev/hvc0 2>&1
    status=$?
else
    # A port can be opened once at a time: these stay open, for the marks, whatever the job leaves
    # running.
    exec 3> "$out"
    sh /job/run < /dev/null >&3 2>&4 3>&- 4>&-
    status=$?
    printf '\036lab-end %s %s\n' "$token" "$status" >&3
fi
printf '\036lab-end %s %s\n' "$token" "$status" >&4
# The machine ends the VM as soon as it has read that; this is for the case that it does not.
sleep 10
poweroff -f 2> /dev/null || busybox poweroff -f
