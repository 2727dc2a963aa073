"""TLS for the metrics page: what the settings say as a context, or why it cannot be one. Source: felix specification
2.3.
"""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

from calico_core.errors import InvalidSettings
from calico_core.log import get_logger
from calico_core.settings import Settings

log = get_logger(__name__)

_CLIENTS = {
    "NoClientCert": ssl.CERT_NONE,
    # a certificate that nobody checks proves nothing
    "RequestClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    # as the next: what is required is checked
    "RequireAnyClientCert": ssl.CERT_REQUIRED,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


class RenewedTls:
    """A context that follows its files: certificates are renewed while the node runs. Any thread."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``InvalidSettings`` as :func:`metrics_tls` does."""
        self._settings = settings
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._context = metrics_tls(settings)

    def context(self) -> ssl.SSLContext | None:
        """As the files are now; as they were, while what they are now cannot be used."""
        with self._lock:
            stamps = self._stamps()
            if stamps != self._seen:
                self._seen = stamps
                try:
                    self._context = metrics_tls(self._settings)
                    log.info("metrics.certificates_renewed", file=self._settings.metrics_cert_file)
                except InvalidSettings as error:
                    log.warning("metrics.certificates_not_renewed", reason=str(error))
            return self._context

    def _stamps(self) -> tuple[tuple[int, int] | None, ...]:
        settings = self._settings
        files = (settings.metrics_cert_file, settings.metrics_key_file, settings.metrics_ca_file)
        return tuple(_stamp(file) for file in files if file)


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def metrics_tls(settings: Settings) -> ssl.SSLContext | None:
    """None: plain HTTP. Raises ``InvalidSettings``: half of it is given, or a file cannot be used."""
    certificate, key = settings.metrics_cert_file, settings.metrics_key_file
    if not certificate and not key:
        if settings.metrics_ca_file:
            raise _refusal(settings, "metrics_ca_file", "it needs metrics_cert_file and metrics_key_file")
        return None
    for name, given, missing in (
        ("metrics_cert_file", certificate, "metrics_key_file"),
        ("metrics_key_file", key, "metrics_cert_file"),
    ):
        if not given:
            raise _refusal(settings, missing, f"give {name} too, or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = f"{certificate} with the key {key} cannot be used: {_words(error)}"
        raise _refusal(settings, "metrics_cert_file", reason) from error
    context.verify_mode = _CLIENTS[settings.metrics_client_auth]
    if context.verify_mode is ssl.CERT_NONE:
        return context
    if not settings.metrics_ca_file:
        reason = f"{settings.metrics_client_auth} needs metrics_ca_file, to check certificates of clients with"
        raise _refusal(settings, "metrics_client_auth", reason)
    try:
        context.load_verify_locations(settings.metrics_ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = f"{settings.metrics_ca_file} cannot be used: {_words(error)}"
        raise _refusal(settings, "metrics_ca_file", reason) from error
    return context


def _refusal(settings: Settings, name: str, reason: str) -> InvalidSettings:
    return InvalidSettings(name, settings.origins.get(name, "default"), reason)


def _words(error: OSError) -> str:
    return error.strerror or str(error)
