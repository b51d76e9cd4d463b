#!/usr/bin/env bash
# The demo: starts the whole system, deploys scripts/demo.rhai, shows what came of it, cleans up.
set -euo pipefail

rhizome=$(realpath "$1")
image=$(realpath "$2")
cd "$(dirname "$0")/.."

state=$(mktemp -d /tmp/rhizome-demo.XXXXXX)
dev=
finish() {
    status=$?
    trap - EXIT INT TERM
    if [ -n "$dev" ] && kill -0 "$dev" 2>/dev/null; then
        echo "--- cleaning up"
        kill -INT "$dev"
        wait "$dev" || true
    fi
    if [ "$status" -ne 0 ]; then
        echo "--- the demo failed; the last lines of the logs:" >&2
        tail -n 15 "$state"/logs/*.log >&2 || true
    fi
    rm -rf "$state"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

echo "--- starting ledger, coord, and a node with its Redis, supervisor and runners"
# In its own group, so that a Ctrl-C reaches this script first, which then stops it in order.
setsid "$rhizome" dev --state "$state" >"$state/ready" &
dev=$!
until grep -q '^ready' "$state/ready"; do
    kill -0 "$dev" 2>/dev/null || { wait "$dev" || exit $?; exit 1; }
    sleep 0.1
done
cat "$state/ready"

export RHIZOME_STATE=$state
show() { echo "--- \$ rhizome $*"; "$rhizome" "$@"; }

show deploy scripts/demo.rhai --name demo --param "image=file://$image"
show show demo
show logs demo/client
show exec demo/web -- /bin/hostname
show queues
show delete demo
show list
