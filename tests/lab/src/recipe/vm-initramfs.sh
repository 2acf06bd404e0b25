#!/busybox sh
# First process of the lab VM: finds the disk and hands over to /lab/init on it.
for module in /modules/*; do
    /busybox insmod "$module"
done
/busybox mount -t devtmpfs dev /dev
/busybox mount -t ext4 -o noatime /dev/vda /root
/busybox mount -o move /dev /root/dev
exec /busybox switch_root /root /lab/init
