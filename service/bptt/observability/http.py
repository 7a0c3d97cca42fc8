"""The endpoint that Prometheus scrapes, on a port of its own and in threads of its own."""

from __future__ import annotations

import errno

from prometheus_client import start_http_server

from bptt.config import split_address
from bptt.errors import AddressInUse, CannotListen
from bptt.observability.metrics import Metrics


class MetricsEndpoint:
    """Serves /metrics until it is closed.

    Attributes:
        address: host:port where it listens, with the real port.

    Raises:
        AddressInUse: another program has the address.
        CannotListen: it cannot be listened on for another reason.
    """

    def __init__(self, address: str, metrics: Metrics) -> None:
        host, port = split_address("metrics_address", address)
        try:
            self._server, self._thread = start_http_server(port, host, metrics.registry)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse.at("metrics_address", address) from error
            why = error.strerror or str(error)
            raise CannotListen.of("metrics_address", address, why) from error
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving and free the address."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
