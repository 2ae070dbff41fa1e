"""The server of the live page: one run, one page, its rows as JSON; nothing else can be asked.

No part of a request reaches the file system: a path is compared with the two that are known. On the loopback the Host
header must name the loopback, so that a page of another origin cannot read the rows under a name of its own that leads
here; an Origin header must be the server's own. Beyond the loopback a token is needed. The page itself holds no data
and asks for the rows with the token, which stands behind the address's ``#`` and is therefore never sent to anybody.
"""

import base64
import contextlib
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import socket
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from normscope._errors import UsageError
from normscope.live.follower import Follower
from normscope.live.sentences import Compose

#: Port that is taken where none is asked for and it is free.
USUAL_PORT = 7117

#: Connections that are held at once; further connections are closed.
MOST_CONNECTIONS = 32
#: Seconds after which a request is cut off, whatever still comes of it.
REQUEST_SECONDS = 30.0

_ROWS = "/rows"
_IDLE_SECONDS = 10.0
_TOKEN = re.compile(r"[A-Za-z0-9_.~-]{8,200}")


class LiveServer:
    """Serves the page of one run until it is closed.

    Args:
        run: The run's folder; it need not exist yet.
        host: Address to listen at.
        port: Port to listen at; None takes `USUAL_PORT`, or any other that is free.
        token: What a viewer must know; None asks for none on the loopback and makes one elsewhere.
        compose: Composes the sentences on what stands out, from the folder.

    Attributes:
        url: Address of the page, with the token.

    Raises:
        UsageError: The port is in use, the host is none of this machine, the token is too short, or the folder is not
            one of scopes.
        StoreError: The folder's ``run.json`` is damaged.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        token: str | None = None,
        compose: Compose | None = None,
    ) -> None:
        if token is not None and not _TOKEN.fullmatch(token):
            raise UsageError("a token has 8 to 200 letters, digits, '-', '_', '.' or '~'")
        self._loopback = is_loopback(host)
        self.token = token if token is not None or self._loopback else secrets.token_urlsafe(24)
        import polars  # noqa: F401  # now, not when the first rows come

        follower = Follower(run, compose)
        self._http = _listen(host, port)
        self._http.follower, self._http.loopback, self._http.token = follower, self._loopback, self.token
        shown = f"[{host}]" if ":" in host else socket.gethostname() if host in ("0.0.0.0", "") else host
        self.url = f"http://{shown}:{self.port}/" + (f"#token={self.token}" if self.token else "")

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return int(self._http.server_address[1])

    def serve(self) -> None:
        """Answer until `close` is called from another thread, or an exception ends it."""
        self._http.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """End `serve` and free the port."""
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> "LiveServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.server_close()


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is this machine's loopback."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # there it would let two servers share a port
    request_queue_size = 64

    def __init__(self, address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.follower: Follower
        self.loopback = True
        self.token: str | None = None
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the network for the machine's full name.
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a viewer that goes away is no news."""


def _listen(host: str, port: int | None) -> _Server:
    try:
        return _Server((host, USUAL_PORT if port is None else port))
    except socket.gaierror:
        raise UsageError(f"--host {host} is no address of this machine") from None
    except OverflowError:
        raise UsageError(f"--port {port} must be from 0 to 65535") from None
    except OSError as error:
        if port is not None:
            raise UsageError(f"cannot listen at {host}:{port}: {error.strerror or error}; leave --port out") from None
    try:
        return _Server((host, 0))
    except OSError as error:
        raise UsageError(f"cannot listen at {host}: {error.strerror or error}") from None


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "normscope", ""
    timeout = _IDLE_SECONDS

    def handle(self) -> None:
        # The time-out of the socket begins anew with each byte; this one does not.
        ending = threading.Timer(REQUEST_SECONDS, self._cut)
        ending.daemon = True
        ending.start()
        try:
            super().handle()
        finally:
            ending.cancel()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            self._refuse(405, "only GET and HEAD are answered", {"Allow": "GET, HEAD"})
            return False
        return True

    def do_GET(self) -> None:
        refused = self._refusal()
        path, _, query = self.path.partition("?")
        if refused:
            self._refuse(403, refused)
        elif path == "/":
            content, policy = page()
            self._send(200, "text/html; charset=utf-8", content, {"Content-Security-Policy": policy})
        elif path == "/favicon.ico":
            self._send(204, "image/x-icon", b"")
        elif path != _ROWS:
            self._refuse(404, "there is nothing here")
        elif not self._knows_token():
            self._refuse(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        else:
            asked = parse_qs(query[:400])
            version = (asked.get("version") or ["0"])[0]
            number = int(version) if version.isascii() and version.isdigit() and len(version) < 16 else 0
            answer = self.server.follower.answer((asked.get("collection") or [""])[0], number)
            content = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode("ascii")
            self._send(200, "application/json", content)

    def do_HEAD(self) -> None:
        self.do_GET()  # `_send` leaves the content out

    def _refusal(self) -> str:
        """Return why a request is not answered, whatever it asks; "" if it may be."""
        hosts, origins = self.headers.get_all("Host") or [], self.headers.get_all("Origin") or []
        if len(hosts) != 1 or len(origins) > 1:
            return "a request names one host"
        if self.server.loopback and not _names_loopback(hosts[0], self.server.server_port):
            return "this server answers under the names of the loopback alone"
        if origins and origins[0].lower() != f"http://{hosts[0]}".lower():
            return "another origin may not read this"
        from_elsewhere = self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
        # A link on another site may lead to this page, which holds no data; nothing else may be asked from there.
        by_link = self.path.partition("?")[0] == "/" and self.headers.get("Sec-Fetch-Mode") == "navigate"
        return "another site may not read this" if from_elsewhere and not by_link else ""

    def _knows_token(self) -> bool:
        if self.server.token is None:
            return True
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode())

    def _refuse(self, status: int, why: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, "text/plain; charset=utf-8", f"{why}\n".encode(), headers)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what cannot be parsed, without repeating any of it."""
        self.close_connection = True
        self._refuse(code, "the request is malformed")

    def _send(self, status: int, kind: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
            "Connection": "close",
        }
        for name, value in (fixed | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _names_loopback(host: str, port: int) -> bool:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+)(?::(\d{1,5}))?", host)
    return match is not None and is_loopback(match[1].strip("[]")) and int(match[2] or 80) == port


@cache
def page() -> tuple[bytes, str]:
    """Return the page as one file, and the content security policy that lets its own script and style run alone."""
    folder = Path(__file__).parent / "page"
    script, style = ((folder / name).read_text(encoding="utf-8") for name in ("live.js", "live.css"))
    html = (folder / "live.html").read_text(encoding="utf-8")
    html = html.replace("{{style}}", style).replace("{{script}}", script)

    def of(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    policy = (
        f"default-src 'none'; script-src {of(script)}; style-src {of(style)}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.encode(), policy
