#!/busybox sh
# Init of a guest: loads the network drivers and executes commands from the serial line, one a
# line: an id, a time limit in seconds, the shell commands in base64. See lab::guest.
/busybox mkdir -p /bin /proc /sys /dev /run /tmp /etc
/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
dmesg -n 1
for module in /modules/*; do
    insmod "$module"
done
ip link set lo up
stty -F /dev/ttyS0 raw -echo
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
printf '\036lab-ready\n'
while read -r id limit command; do
    echo "$command" | base64 -d > "/tmp/$id"
    printf '\036lab-begin %s\n' "$id"
    timeout -s KILL "$limit" sh "/tmp/$id" < /dev/null 2>&1
    printf '\036lab-end %s %s\n' "$id" "$?"
    rm "/tmp/$id"
done
