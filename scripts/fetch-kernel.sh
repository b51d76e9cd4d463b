#!/usr/bin/env bash
# Puts Debian's kernel for virtual machines into build/kernel, for the tests that boot machines, and
# beside it the modules that its disks need: the package is downloaded and unpacked, never installed.
# fetch-kernel.sh OUT; an OUT that is there is kept, with its modules.
set -euo pipefail

out=${1:?usage: fetch-kernel.sh OUT}
modules=$(dirname "$out")/modules
if [ -s "$out" ] && [ -d "$modules" ]; then exit 0; fi
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
dpkg-deb --fsys-tarfile "$folder"/*.deb | tar -x -C "$folder" --wildcards './boot/vmlinuz-*' \
    './lib/modules/*/kernel/drivers/virtio/*.ko' './lib/modules/*/kernel/drivers/block/virtio_blk.ko'
mkdir -p "$folder/modules"
find "$folder/lib/modules" -name '*.ko' -exec mv -t "$folder/modules" {} +
rm -rf "$modules"
mv "$folder/modules" "$modules"
mv "$folder"/boot/vmlinuz-* "$out.new"
mv "$out.new" "$out"
