#!/usr/bin/env bash
# Sends the ledger what its own description allows, and what it does not: no answer may be a 5xx, or
# other than described. Usage: run.sh RHIZOME VENV [SECONDS] [SEED]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rhizome=$(realpath "$1") venv=$(realpath -m "$2") seconds=${3:-120} seed=${4:-$RANDOM}

if [ ! -x "$venv/bin/schemathesis" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
fi

state=$(mktemp -d)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port
"$rhizome" ledger --state "$state" --network dev --listen "127.0.0.1:$port" 2> "$state/log" &
ledger=$!
trap 'kill $ledger 2> /dev/null || true; wait $ledger 2> /dev/null || true; rm -rf "$state"' EXIT
for _ in $(seq 100); do
    (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null && break
    sleep 0.1
done
"$venv/bin/python" "$here/hooks.py" "$url"

echo "seed $seed"
cd "$state"
SCHEMATHESIS_HOOKS=hooks PYTHONPATH=$here "$venv/bin/schemathesis" run "$url/openapi.json" \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance \
    --phases examples,coverage,fuzzing --max-time "$seconds" --seed "$seed" \
    --continue-on-failure --warnings off --generation-database none --suppress-health-check all
"$rhizome" ledger --state "$state" audit verify
if grep -E ' ERROR ' "$state/log"; then
    echo "the ledger logged errors" >&2
    exit 1
fi
