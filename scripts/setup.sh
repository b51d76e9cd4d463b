#!/usr/bin/env bash
# Installs what building, testing and running needs and is not there yet. Debian, as root.
set -euo pipefail

packages=(
    # building: a C compiler for SQLite and ring, libclang for the btrfs bindings
    gcc libc6-dev libclang-dev libbtrfsutil-dev pkg-config
    # running
    redis-server btrfs-progs iproute2 runc busybox-static nftables
    # testing
    iputils-ping procps util-linux openssh-client python3 python3-venv
    # the ledger's other database; tests start a cluster of their own
    postgresql
    swtpm tpm2-tools
    # building boot images, and testing them
    systemd-boot-efi binutils dosfstools mtools gdisk fdisk ovmf qemu-system-x86
    # cutting the power of a machine that has a queue
    e2fsprogs
)

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "missing packages: ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    echo "installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # The packages' own services are not for us: rhizome starts its own Redis on a unix socket.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if ! command -v cargo >/dev/null; then
    echo "cargo is missing: install Rust 1.95 or newer from https://rustup.rs" >&2
    exit 1
fi
if ! cargo nextest --version >/dev/null 2>&1; then
    cargo install --locked cargo-nextest
fi
