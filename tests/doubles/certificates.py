"""A certificate authority for tests: the ``openssl`` program and a folder."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    certificate: Path
    key: Path


class Authority:
    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        _openssl(
            "req", "-x509", *_NEW_KEY, "-days", "2", "-subj", f"/CN={name}",
            "-keyout", str(self.key), "-out", str(self.certificate),
        )  # fmt: skip

    def issue(
        self, name: str, *, is_server: bool = False, is_expired: bool = False, address: str = "127.0.0.1"
    ) -> Pair:
        """A certificate with ``name`` as its common name; a server's also holds ``address``. A new one a call, under
        the same file names: issuing again is how a certificate is renewed."""
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        usage = "serverAuth,clientAuth" if is_server else "clientAuth"
        extensions.write_text(f"extendedKeyUsage={usage}\n" + (f"subjectAltName=IP:{address}\n" if is_server else ""))
        _openssl("req", "-new", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", str(pair.key), "-out", str(request))
        _openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self.key),
            "-CAcreateserial", "-days", "-1" if is_expired else "2", "-extfile", str(extensions),
            "-out", str(pair.certificate),
        )  # fmt: skip
        return pair


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
