"""aiohttp's errors as ours: what happened, what it means for the money, and what to do about it."""

import ssl
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from fuhu_runway._redact import redact
from fuhu_runway.errors import Fate, NoReply, NotSent, RunwayError

NEVER_ARRIVED: Final = (
    aiohttp.ClientConnectorError,
    # A TimeoutError like that for a late response: only its class says that there was no
    # connection, also if a borrowed session has none free.
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    UnicodeError,
)
"""Errors that are raised before a request without a body is written."""


class TransportCause(Exception):
    """The class and the text of the HTTP library's error, without addresses and secrets."""


def failure_of(
    exc: Exception, proxy: str | None, task_id: str | None, *, is_written: bool, is_paid: bool
) -> RunwayError:
    """Return our error for one of aiohttp's."""
    if not is_written:
        happened, advice = _explained(exc, proxy)
        return NotSent(happened, "Nothing was charged.", advice, task_id, None, Fate.UNSENT)
    money = "It may have been accepted and charged." if is_paid else "Nothing was charged."
    happened = f"No complete response came back ({type(exc).__name__})."
    return NoReply(happened, money, "Try again later.", task_id, None, Fate.UNKNOWN)


def _explained(exc: Exception, proxy: str | None) -> tuple[str, str]:
    """Return why a request could not be sent, and what to do about it."""
    name = type(exc).__name__
    fault = getattr(exc, "certificate_error", None) or getattr(exc, "os_error", None)
    if isinstance(fault, ssl.SSLCertVerificationError):
        why = f"The TLS certificate is not trusted ({fault.verify_message})."
        other = "If it comes from an authority of your own, name its file in SSL_CERT_FILE."
        return _WRONG_CERTIFICATE.get(fault.verify_code, (why, other))
    if isinstance(fault, ssl.SSLError):
        return (
            f"The TLS handshake failed ({fault.reason or type(fault).__name__}).",
            "Check scheme and port of base_url: there may be no TLS, or another version of it.",
        )
    if proxy is None:
        return (
            f"The gateway could not be reached ({name}).",
            "Check the network and base_url, then call again.",
        )
    host = redact(urlsplit(proxy).hostname or "")
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return (
            f"The proxy {host} refused the connection with status {exc.status}.",
            "Check the user and password in HTTPS_PROXY."
            if exc.status == 407
            else "Ask its operator, or add the gateway's host to NO_PROXY, then call again.",
        )
    return (
        f"The gateway could not be reached through the proxy {host} ({name}).",
        "Check HTTPS_PROXY, or add the gateway's host to NO_PROXY, then call again.",
    )


_WRONG_HOST: Final = (
    "The TLS certificate is for another host.",
    "Check the host in base_url; a proxy or a captive portal may have answered.",
)
_WRONG_TIME: Final = (
    "The TLS certificate has expired or is not valid yet.",
    "Check the clock of this machine; otherwise the server's operator has to renew it.",
)
_WRONG_CERTIFICATE: Final = {9: _WRONG_TIME, 10: _WRONG_TIME, 62: _WRONG_HOST, 64: _WRONG_HOST}
"""Messages by OpenSSL's X509_V_ERR codes: not yet valid, expired, host and IP address mismatch."""
