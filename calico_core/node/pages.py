"""The node's pages over HTTP: health for kubelet and people, metrics for Prometheus. A page that cannot be served stops
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus

from calico_core.errors import InvalidSettings
from calico_core.log import get_logger
from calico_core.node.health import Answer, Component, Health, HttpServer, Tls
from calico_core.node.metric import CONTENT_TYPE, Metric, render
from calico_core.node.tls import RenewedTls
from calico_core.settings import Settings

log = get_logger(__name__)


class NodePages:
    """Made, started and stopped by the main thread; answered by threads of their own."""

    def __init__(self, look: Callable[[], Iterable[Component]], figures: Callable[[], list[Metric]]) -> None:
        self._look, self._figures = look, figures
        self._health: HttpServer | None = None
        self._metrics: HttpServer | None = None

    def serve_health(self, settings: Settings) -> None:
        """From the first moment, so that a node that waits is seen to live; again when the datastore knows another
        place for it."""
        is_wanted = settings.health_enabled and settings.health_port != 0
        place = (settings.health_host, settings.health_port) if is_wanted else None
        if self._health is not None:
            if self._health.place == place:
                return
            self._health.stop()
            self._health = None
        if place is not None:
            self._health = _listen(*place, Health(self._look).pages(), name="health")

    def serve_metrics(self, settings: Settings) -> None:
        if not settings.metrics_enabled or settings.metrics_port == 0:
            return
        try:
            tls = RenewedTls(settings)
        except InvalidSettings as error:
            # never without TLS instead: somebody wanted it closed
            log.error("http.not_listening", server="metrics", reason=str(error))
            return

        def answer() -> Answer:
            return Answer(HTTPStatus.OK, CONTENT_TYPE, render(self._figures()))

        pages = {"/metrics": answer}
        self._metrics = _listen(settings.metrics_host, settings.metrics_port, pages, name="metrics", tls=tls.context)

    def stop(self) -> None:
        for server in (self._health, self._metrics):
            if server is not None:
                server.stop()


def _listen(
    host: str,
    port: int,
    pages: Mapping[str, Callable[[], Answer]],
    *,
    name: str,
    tls: Tls | None = None,
) -> HttpServer | None:
    try:
        server = HttpServer(host, port, pages, name=name, tls=tls)
    except OSError as error:
        log.error("http.not_listening", server=name, host=host, port=port, reason=error.strerror or str(error))
        return None
    server.start()
    return server
