#!/bin/sh
# The first program of the Linux test guest. It becomes what its NoCloud disk says, as cloud-init would.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS0 2>&1
for module in /lib/*.ko; do insmod "$module" || echo "guest: cannot load $module"; done

# The disk with this serial.
disk() {
    for folder in /sys/block/vd*; do
        [ "$(cat "$folder/serial" 2>/dev/null)" = "$1" ] && echo "/dev/${folder##*/}" && return
    done
    return 1
}
# The value of a key in pretty-printed JSON, as the disk has it.
value() { sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\).*/\1/p" "$2" | head -n 1; }
fact() { echo "$1" >>/www/facts; }

seed=/run/seed
mkdir -p $seed
for device in /dev/vd?; do
    mount -t vfat -o ro "$device" $seed 2>/dev/null || continue
    [ -e $seed/meta-data ] && break
    umount $seed
done
[ -e $seed/user-data ] || echo "guest: no NoCloud disk"

hostname "$(value local-hostname $seed/meta-data)"
fact "hostname=$(hostname)"
fact "instance=$(value instance-id $seed/meta-data)"

# The file of ours is the last that is written.
sed -n 's/^ *"content": "\([^"]*\)".*/\1/p' $seed/user-data | tail -n 1 | base64 -d >/run/env
cp /run/env /www/env
grep -A 2 '"ssh_authorized_keys"' $seed/user-data | grep -q 'ssh-' && fact "ssh=yes"

mac=$(value macaddress $seed/network-config)
for folder in /sys/class/net/*; do
    [ -n "$mac" ] && [ "$(cat "$folder/address")" = "$mac" ] || continue
    card=${folder##*/}
    address=$(sed -n '/"addresses": \[/{n;s/^ *"\([^"]*\)".*/\1/p}' $seed/network-config | head -n 1)
    sysctl -q -w "net.ipv6.conf.$card.accept_ra=0" "net.ipv6.conf.$card.accept_dad=0"
    ip link set lo up
    ip link set "$card" mtu "$(value mtu $seed/network-config)" up
    ip -6 addr add "$address" dev "$card"
    via=$(value via $seed/network-config)
    for to in $(sed -n 's/^ *"to": "\([^"]*\)".*/\1/p' $seed/network-config); do
        ip -6 route add "$to" via "$via" dev "$card"
    done
    fact "address=$address"
    fact "mtu=$(cat "$folder/mtu")"
done

# Lines of the list "mounts": device, path, file system, options.
sed -n '/"mounts": \[/,$p' $seed/user-data | sed -n 's/^ *"\([^"]*\)",\{0,1\}$/\1/p' | while
    read -r device && read -r path && read -r system && read -r options && read -r _ && read -r _
do
    device=$(disk "${device#/dev/disk/by-id/virtio-}") || { echo "guest: no disk for $path"; continue; }
    mkdir -p "$path"
    options=${options%,nofail}
    # An ext file system is known by two bytes of its head.
    magic=$(dd if="$device" bs=1 skip=1080 count=2 2>/dev/null | xxd -p)
    [ "$options" = ro ] || [ "$magic" = 53ef ] || mke2fs "$device" >/dev/null
    if mount -t "$system" -o "$options" "$device" "$path" || mount -t ext2 -o "$options" "$device" "$path"; then
        fact "mount=$path $options"
        mkdir -p /www/files
        ln -s "$path" "/www/files/$(echo "${path#/}" | tr / -)"
    fi
done

# A test writes with "PATH=TEXT" as the query, and what it wrote is on the disk when it is answered.
mkdir -p /www/cgi-bin
cat >/www/cgi-bin/write <<'CGI'
#!/bin/sh
printf '%s' "${QUERY_STRING#*=}" >"${QUERY_STRING%%=*}" && sync && printf 'Content-Type: text/plain\r\n\r\nwritten\n'
CGI
chmod 755 /www/cgi-bin/write
httpd -p '[::]:80' -h /www

echo "guest ready $(hostname)"
cat /www/facts

grep -q 'guest.deaf' /proc/cmdline && while :; do sleep 3600; done
# What is pressed is read from the button's own device.
for name in /sys/class/input/event*/device/name; do
    [ "$(cat "$name")" = "Power Button" ] || continue
    event=${name%/device/name}
    (head -c 1 "/dev/input/${event##*/}" >/dev/null; echo >>/run/pressed) &
done
while [ ! -e /run/pressed ]; do usleep 50000; done
echo "guest powers off"
sync
umount -a -t ext2,ext4
poweroff -f
