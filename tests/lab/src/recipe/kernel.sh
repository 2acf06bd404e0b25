#!/bin/sh
# Runs as root in the build root. Out, in /out: vmlinuz (for guests), vmlinux (the same kernel
# unpacked, boots faster under emulation), modules/, release. Lines that start with "## " are
# shown as progress.
set -eu
say() { echo "## $*"; }
export LC_ALL=C

# One version of everything: the image decides, the rest must follow.
image=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
release=${image#linux-image-}
series=$(echo "$release" | sed 's/^\([0-9]*\.[0-9]*\).*/\1/')
version=$(apt-cache show "$image" | sed -n 's/^Version: //p' | head -n 1)
headers=/usr/src/linux-headers-$release
if [ ! -d "$headers" ]; then
    echo "linux-headers-amd64 is not of the image's release $release" >&2
    exit 1
fi
# The source package may already be one build ahead of the signed image.
source=linux-source-$series=$(apt-cache madison "linux-source-$series" | awk -v v="$version" '$3 == v { print $3; exit }')
[ "$source" = "linux-source-$series=" ] && source=linux-source-$series

say "downloading $image $version and $source"
mkdir -p /debs /unpacked /out
cd /debs
apt-get download -qq -o APT::Sandbox::User=root \
    "linux-base-$release" "linux-binary-$release" "linux-modules-$release" "$source"
for deb in *.deb; do
    dpkg-deb -x "$deb" /unpacked
    rm "$deb"
done
modules=/unpacked/usr/lib/modules/$release
mv "$modules/vmlinuz" /out/vmlinuz

say "unpacking the sources of three modules"
mkdir /source
tar -xf "/unpacked/usr/src/linux-source-$series.tar.xz" -C /source --strip-components=1 \
    "linux-source-$series/drivers/net/netdevsim" \
    "linux-source-$series/drivers/vdpa" \
    "linux-source-$series/drivers/vhost"

say "building netdevsim, vp_vdpa, vringh and vdpa_sim"
cd /source
echo 'obj-m := vringh.o' > drivers/vhost/Makefile
echo 'obj-m := vdpa_sim.o vdpa_sim_net.o' > drivers/vdpa/vdpa_sim/Makefile
build() {
    folder=$1
    shift
    make -s -j "$(nproc)" -C "$headers" M="/source/$folder" "$@" modules
}
build drivers/net/netdevsim CONFIG_NETDEVSIM=m
build drivers/vdpa/virtio_pci CONFIG_VP_VDPA=m
build drivers/vhost
build drivers/vdpa/vdpa_sim KBUILD_EXTRA_SYMBOLS=/source/drivers/vhost/Module.symvers
mkdir -p "$modules/updates"
find drivers -name '*.ko' -exec cp {} "$modules/updates/" \;
strip --strip-debug "$modules"/updates/*.ko

# What a machine without a screen, disks or radio never loads; the rest unpacked, because
# unpacking under emulation costs more than reading.
say "packing modules"
(
    cd "$modules/kernel"
    rm -rf sound net/bluetooth net/wireless net/mac80211
    cd drivers
    rm -rf accel ata bluetooth comedi crypto edac gpu hid hwmon iio infiniband input isdn md media \
        mmc mtd net/can net/usb net/wireless net/wwan nvme platform scsi staging target usb video
)
find "$modules" -name '*.ko.xz' -print0 | xargs -0 -n 64 -P "$(nproc)" xz -d -T 1
depmod -b /unpacked/usr "$release"
mv "$modules" /out/modules
echo "$release" > /out/release

# The packed kernel is inside the boot image; Documentation/arch/x86/boot.rst has the offsets.
cd /out
field() { od -An -t "u$2" -j "$1" -N "$2" vmlinuz | tr -d ' '; }
start=$(( ($(field 497 1) + 1) * 512 + $(field 584 4) ))
length=$(( $(field 588 4) - 4 ))
tail -c "+$((start + 1))" vmlinuz | head -c "$length" > packed || true
case $(od -An -t x4 -N 4 packed | tr -d ' ') in
    fd2fb528) zstd -q -d -c packed > vmlinux ;;
    *) cp vmlinuz vmlinux ;;
esac
rm packed
