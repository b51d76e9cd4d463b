#!/bin/sh
# Builds a small machine image from Debian's busybox-static: build-image.sh OUT.tar
# The same busybox gives the same bytes. An image that is newer than busybox and this script is kept.
set -eu

out=${1:?usage: build-image.sh OUT.tar}
case $out in /*) ;; *) out=$PWD/$out ;; esac
busybox=${BUSYBOX:-/bin/busybox}
[ -x "$busybox" ] || { echo "$busybox is missing: apt-get install busybox-static" >&2; exit 1; }
if [ -s "$out" ] && [ "$out" -nt "$busybox" ] && [ "$out" -nt "$0" ]; then exit 0; fi

mkdir -p "$(dirname "$out")"
root=$(mktemp -d)
new=$(mktemp "$out.XXXXXX")
trap 'rm -rf "$root" "$new"' EXIT

cd "$root"
mkdir -p bin etc tmp root data dev proc sys run usr var/www
# One folder of programs under every name that scripts use for it.
ln -s bin sbin
ln -s ../bin usr/bin
ln -s ../bin usr/sbin
chmod 755 .
chmod 1777 tmp
cp "$busybox" bin/busybox
chmod 755 bin/busybox
"$busybox" --list | while read -r applet; do
    [ "$applet" = busybox ] || ln -s busybox "bin/$applet"
done
# Debian's list has no sh at times; a machine without one is of little use.
[ -e bin/sh ] || ln -s busybox bin/sh
# The default command: it waits, and ends at once when it is asked to.
rm -f bin/init
cat > bin/init <<'INIT'
#!/bin/sh
trap 'exit 0' TERM INT
while :; do sleep 3600 & wait $!; done
INIT
chmod 755 bin/init
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' > etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\n' > etc/group
printf '::1 localhost\n127.0.0.1 localhost\n' > etc/hosts

tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -cf "$new" .
chmod 644 "$new"
mv "$new" "$out"
