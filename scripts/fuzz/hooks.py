"""Signs what schemathesis sends as a client of the ledger would: X-Auth on /v1, RFC 9421 on /v2."""

import base64
import hashlib
import os
import random
import time
import urllib.parse

import requests
import schemathesis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def b64(data):
    return base64.b64encode(data).decode()


def x_auth():
    challenge = f"{int(time.time())}:1".encode()
    return f"{b64(challenge)}:{b64(KEY.sign(challenge))}"


def message_signature(request):
    body = request.body or b""
    if isinstance(body, str):
        body = body.encode()
    digest = f"sha-256=:{b64(hashlib.sha256(body).digest())}:"
    path, _, query = request.path_url.partition("?")
    nonce = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
    params = (
        '("@method" "@path" "@query" "content-digest")'
        f';created={int(time.time())};nonce="{nonce}";keyid="{PUBLIC.hex()}";alg="ed25519"'
    )
    base = "\n".join(
        [
            f'"@method": {request.method}',
            f'"@path": {path}',
            f'"@query": ?{query}',
            f'"content-digest": {digest}',
            f'"@signature-params": {params}',
        ]
    )
    return {
        "Content-Digest": digest,
        "Signature-Input": f"rhizome={params}",
        "Signature": f"rhizome=:{b64(KEY.sign(base.encode()))}:",
    }


class Signed(requests.auth.AuthBase):
    """Now and then a request goes out without, as a stranger's would."""

    def __call__(self, request):
        if random.random() < 0.1:
            return request
        if urllib.parse.urlsplit(request.url).path.startswith("/v2"):
            request.headers.update(message_signature(request))
        else:
            request.headers["X-Auth"] = x_auth()
        return request


schemathesis.auth.set_from_requests(Signed())


def prepare(url):
    """Account 1, its farm and its node: so that what is asked for is sometimes there."""
    session = requests.Session()
    now, public = int(time.time()), b64(PUBLIC)
    signature = b64(KEY.sign(f"{now}:{public}".encode()))
    account = {"timestamp": now, "public_key": public, "signature": signature}
    session.post(f"{url}/v1/accounts", json=account).raise_for_status()
    farm = {"farm_name": "home", "twin_id": 1, "stellar_address": "G" + "A" * 55}
    headers = {"X-Auth": x_auth()}
    session.post(f"{url}/v1/farms", json=farm, headers=headers).raise_for_status()
    node = {
        "twin_id": 1,
        "farm_id": 1,
        "serial_number": "S1",
        "resources": {"hru": 1, "sru": 1, "cru": 1, "mru": 1},
        "interfaces": [{"name": "eth0", "mac": "aa:bb", "ips": ["10.0.0.2"]}],
    }
    session.post(f"{url}/v1/nodes", json=node, headers=headers).raise_for_status()


if __name__ == "__main__":
    import sys

    prepare(sys.argv[1])
