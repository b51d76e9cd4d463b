#!/usr/bin/env bash
# Puts Debian's kernel for virtual machines into build/kernel, for the tests that boot machines, and
# beside it the modules that such machines need: the package is downloaded and unpacked, never installed.
# fetch-kernel.sh OUT; an OUT that is there is kept, with its modules.
set -euo pipefail

out=${1:?usage: fetch-kernel.sh OUT}
modules=$(dirname "$out")/modules
# Below /lib/modules/VERSION/kernel: disks and network, the file system of small disks, the power button.
needed=(drivers/virtio/*.ko drivers/block/virtio_blk.ko drivers/net/virtio_net.ko drivers/net/net_failover.ko
    net/core/failover.ko fs/fat/fat.ko fs/fat/vfat.ko fs/nls/nls_cp437.ko fs/nls/nls_ascii.ko
    drivers/input/evdev.ko drivers/acpi/button.ko)
# All are there since the last of them is.
if [ -s "$out" ] && [ -e "$modules/button.ko" ]; then exit 0; fi
mkdir -p "$(dirname "$out")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
skip() {
    echo "SKIPPED: $1; the tests that boot machines will be skipped" >&2
    exit 0
}

kernel() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        sed -nE 's/^ *Depends: (linux-image-[0-9].*)$/\1/p' | head -n 1 || true
}
package=$(kernel)
if [ -z "$package" ]; then
    apt-get update -qq || skip "the package lists cannot be fetched"
    package=$(kernel)
fi
[ -n "$package" ] || skip "there is no package linux-image-cloud-amd64"
echo "downloading $package (once)"
(cd "$folder" && apt-get -o APT::Sandbox::User=root download -qq "$package" >/dev/null) ||
    skip "$package cannot be downloaded"
dpkg-deb --fsys-tarfile "$folder"/*.deb |
    tar -x -C "$folder" --wildcards './boot/vmlinuz-*' "${needed[@]/#/./lib/modules/*/kernel/}"
mkdir -p "$folder/modules"
find "$folder/lib/modules" -name '*.ko' -exec mv -t "$folder/modules" {} +
rm -rf "$modules"
mv "$folder/modules" "$modules"
mv "$folder"/boot/vmlinuz-* "$out.new"
mv "$out.new" "$out"
