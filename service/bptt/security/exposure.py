"""Refuses to serve on a network without TLS and a way to know callers, unless asked to."""

from __future__ import annotations

from bptt.config import is_loopback, ServerConfig, split_address
from bptt.errors import InvalidRequest


def check(config: ServerConfig) -> None:
    """Check that the settings of TLS and callers fit together and to the address.

    Raises:
        InvalidRequest: they do not; the error says what to type.
    """
    tls = config.tls
    for name, value, other in (("cert", tls.cert, tls.key), ("key", tls.key, tls.cert)):
        if value is None and other is not None:
            flag = f"--tls-{name}"
            raise InvalidRequest.of(f"tls.{name}", "missing", f"given as well: {flag} FILE")
    if tls.client_ca is not None and tls.cert is None:
        bound = "left out, or given with --tls-cert and --tls-key"
        raise InvalidRequest.of("tls.client_ca", str(tls.client_ca), bound)
    jwt = config.jwt
    given = [each is not None for each in (jwt.issuer, jwt.audience, jwt.keys)]
    if any(given) and not all(given):
        missing = ("issuer", "audience", "keys")[given.index(False)]
        bound = f"given as well: --jwt-{missing}, because --jwt-issuer, --jwt-audience and "
        raise InvalidRequest.of(f"jwt.{missing}", "missing", bound + "--jwt-keys go together")
    host, _ = split_address("address", config.address)
    if is_loopback(host) or config.insecure:
        return
    knows_callers = config.callers is not None or jwt.issuer is not None
    if tls.cert is None or not knows_callers:
        bound = (
            "a loopback address unless the server has TLS and knows its callers; type "
            "--tls-cert FILE --tls-key FILE --callers FILE (`bptt certificate` makes the first two "
            "and `bptt token create` the third), or --insecure to let everybody who reaches the "
            "port read, change and delete every model"
        )
        raise InvalidRequest.of("address", config.address, bound)
