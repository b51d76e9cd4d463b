#!/usr/bin/env python3
"""Makes and checks DSSE envelopes with another implementation than ours.

    python3 -m venv VENV && VENV/bin/pip install securesystemslib cryptography
    VENV/bin/python dsse.py make SEED_HEX PAYLOAD_TYPE < PAYLOAD > ENVELOPE
    VENV/bin/python dsse.py verify < ENVELOPE

`make` signs with the Ed25519 key of a seed; its keyid is the public key in hexadecimal digits, as
ours are. `verify` checks every signature against the key that its keyid is. Exit code 0: good.

securesystemslib.json beside this file came from (securesystemslib 1.6.0, cryptography 50.0.2):

    dsse.py make "$(printf '07%.0s' $(seq 32))" \
        application/vnd.rhizome.delete.v1+json < securesystemslib-payload.json
"""

import json
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey


def key_of(public_hex: str) -> SSlibKey:
    return SSlibKey(public_hex, "ed25519", "ed25519", {"public": public_hex})


def make(seed_hex: str, payload_type: str) -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed_hex))
    key = key_of(private.public_key().public_bytes_raw().hex())
    envelope = Envelope(sys.stdin.buffer.read(), payload_type, {})
    envelope.sign(CryptoSigner(private, key))
    json.dump(envelope.to_dict(), sys.stdout)
    print()


def verify() -> None:
    data = json.load(sys.stdin)
    keyids = [signature["keyid"] for signature in data["signatures"]]
    envelope = Envelope.from_dict(data)
    accepted = envelope.verify([key_of(keyid) for keyid in keyids], len(keyids))
    print("verified:", *sorted(accepted))


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "make":
        make(sys.argv[2], sys.argv[3])
    elif sys.argv[1:] == ["verify"]:
        verify()
    else:
        sys.exit(__doc__)
