"""Why a server may have refused our client certificate. The TLS alert it sends is lost on its way through gRPC, and
would say "bad certificate" at best; so we ask OpenSSL what it thinks of the files ourselves."""

from __future__ import annotations

import ssl


def judge(ca_file: str, cert_file: str, key_file: str) -> str:
    """What is wrong with the certificate as one signed by ``ca_file``: ``certificate has expired``, say. Empty when it
    is in order. ``ca_file`` '': nobody told us who should have signed it, and it is judged but for that. No network: a
    handshake with ourselves, in memory."""
    try:
        checking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        checking.load_cert_chain(cert_file, key_file)
        checking.load_verify_locations(ca_file or cert_file)
        if not ca_file:
            checking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate vouches for itself
        checking.verify_mode = ssl.CERT_REQUIRED
        showing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        showing.check_hostname = False
        showing.verify_mode = ssl.CERT_NONE
        showing.load_cert_chain(cert_file, key_file)
        _shake_hands(checking, showing)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except (ssl.SSLError, OSError) as error:
        return str(error)
    return ""


def _shake_hands(checking: ssl.SSLContext, showing: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = checking.wrap_bio(to_server, to_client, server_side=True)
    client = showing.wrap_bio(to_client, to_server)
    waiting = [client, server]
    for _ in range(6):  # flights: TLS 1.3 takes three
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
