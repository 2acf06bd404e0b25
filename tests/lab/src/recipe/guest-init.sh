#!/busybox sh
# Init of a guest: loads the network drivers and executes commands from the serial line, one a
# line: an id, a time limit in seconds or 0 for none, the shell commands as one quoted word ($'…').
# Inside the lab every fork and exec here is emulated twice: a command without a limit costs one
# fork. See lab::guest.
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
# In a process of its own: what a command leaves running becomes a child of init, and busybox's
# `read` forgets what it has of a line when a child ends.
(
    printf '\036lab-ready\n'
    while read -r id limit command; do
        [ -n "$command" ] || continue
        printf '\036lab-begin %s\n' "$id"
        if [ "$limit" = 0 ]; then
            (eval "eval $command") < /dev/null
            status=$?
        else
            eval "setsid timeout -s KILL $limit sh -c $command" < /dev/null &
            wait "$!"
            status=$?
            # What the command started goes too.
            [ "$status" = 137 ] && kill -9 "-$!"
        fi
        printf '\036lab-end %s %s\n' "$id" "$status"
    done
)
