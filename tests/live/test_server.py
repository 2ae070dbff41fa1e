"""The server: one run for its own page, and nothing to anybody else."""

import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.live_run import HOSTILE, begin, rows_of
from normscope._errors import UsageError
from normscope.live import LiveServer, server as server_module
from normscope.live.server import is_loopback, page
from normscope.records import Record


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("secret")
    store, cell = begin(tmp_path / "run")
    store.append(rows_of(cell, 0))
    store.close()
    return tmp_path / "run"


def serving(server: LiveServer) -> Iterator[LiveServer]:
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.close()
    thread.join()


@pytest.fixture
def server(run: Path) -> Iterator[LiveServer]:
    yield from serving(LiveServer(run, port=0))


@pytest.fixture
def guarded(run: Path) -> Iterator[LiveServer]:
    yield from serving(LiveServer(run, port=0, token="a-token-of-ours"))


def ask(server: LiveServer, path: str, method: str = "GET", headers: dict[str, str] | None = None):
    """Return status, headers and content."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def raw(server: LiveServer, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        got = b""
        with contextlib.suppress(OSError):  # the server may have cut the line already
            line.sendall(sent)
            line.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while more := line.recv(65536):
                got += more
        return got


def test_the_page_and_its_rows(server: LiveServer) -> None:
    status, headers, content = ask(server, "/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Server" not in headers
    text = content.decode()
    assert "{{" not in text.split("<script>")[0]
    assert not re.search(r"(src|href)=['\"]?(https?:)?//", text)  # nothing from elsewhere
    status, headers, content = ask(server, "/rows")
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    answer = json.loads(content)
    assert len(answer["series"]) == len(answer["points"]) == 8
    again = json.loads(ask(server, f"/rows?collection={answer['collection']}&version={answer['version']}")[2])
    assert again["series"] == again["points"] == []
    assert again["cells"][0]["rows"] == 8


def test_every_answer_is_kept_from_caches_frames_and_other_origins(server: LiveServer) -> None:
    for path in ("/", "/rows", "/none"):
        headers = ask(server, path)[1]
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert not [name for name in headers if name.startswith("Access-Control")]
    assert "unsafe" not in page()[1]


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/secret.txt",
        "/secret.txt",
        "/run.json",
        "/rows/../run.json",
        "/rows/",
        "//etc/passwd",
        "/\\..\\secret.txt",
        "/page/live.js",
        "/live.html",
        "/index.html",
        "/%00",
        "/rows%3f",
        "http://127.0.0.1/rows",
        "file:///etc/passwd",
        "*",
        "/." * 1000,
    ],
)
@pytest.mark.parametrize("query", ["", "?run=../../etc/passwd", "?path=/etc/passwd&version=1"])
def test_no_path_leads_to_a_file(server: LiveServer, path: str, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = f"GET {path}{query} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n"
    answer = raw(server, request.encode())
    assert answer.startswith(b"HTTP/1.0 404")
    assert b"secret" not in answer
    assert b"root:" not in answer
    assert b"etc" not in answer  # nothing of a request is repeated


@pytest.mark.parametrize(
    "query",
    [
        "version=-1",
        "version=1e9",
        "version=" + "9" * 500,
        "version=%D9%A1",
        "version=x",
        "collection=../../x&version=3",
        "&" * 300,
        "a=1&" * 90,
        "version=1;version=2",
        "collection=%ff%fe",
        "collection=" + "x" * 5000,
    ],
)
def test_a_query_of_any_kind_is_answered_with_the_rows(server: LiveServer, query: str) -> None:
    status, _, content = ask(server, "/rows?" + query)
    assert status == 200
    assert len(json.loads(content)["points"]) == 8


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW", "get"])
def test_other_methods_are_refused(server: LiveServer, method: str) -> None:
    for path in ("/", "/rows"):
        request = f"{method} {path} HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Length: 5\r\n\r\nhello"
        answer = raw(server, request.encode())
        assert answer.startswith(b"HTTP/1.0 405")
        assert b"Allow: GET, HEAD" in answer


def test_head_has_the_headers_and_no_content(server: LiveServer) -> None:
    status, headers, content = ask(server, "/", "HEAD")
    assert (status, content) == (200, b"")
    assert int(headers["Content-Length"]) == len(page()[0])


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "127.0.0.2", "[::1]"])
def test_names_of_the_loopback_are_answered(server: LiveServer, name: str) -> None:
    own = {"Host": f"{name}:{server.port}"}
    assert ask(server, "/rows", headers=own)[0] == 200
    assert ask(server, "/rows", headers=own | {"Origin": f"http://{name}:{server.port}"})[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "localhost.evil.example:{port}",
        "127.0.0.1.evil.example:{port}",
        "evil@127.0.0.1:{port}",
        "0.0.0.0:{port}",
        "",
        "[::]:{port}",
        "localhost:{port}.evil",
        "2130706433:{port}",
        "127.0.0.1:{port}\t",
        "10.0.0.1:{port}",
        "localhost:٣",
    ],
)
def test_other_hosts_are_refused_also_where_their_name_leads_here(server: LiveServer, host: str) -> None:
    host = host.format(port=server.port)
    for path in ("/", "/rows"):
        answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        if host.strip() == f"127.0.0.1:{server.port}":
            continue  # white space around a value is no part of it
        assert answer.startswith(b"HTTP/1.0 403")


def test_a_request_without_a_host_or_with_two_is_refused(server: LiveServer) -> None:
    own = f"Host: 127.0.0.1:{server.port}\r\n"
    for headers in ("", own + "Host: evil.example\r\n", own * 2):
        assert raw(server, f"GET /rows HTTP/1.1\r\n{headers}\r\n".encode()).startswith(b"HTTP/1.0 403")
    assert b"norm" not in raw(server, b"GET /rows\r\n\r\n")


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://localhost:1",
        "https://127.0.0.1:{port}",
        "",
        "http://localhost:{port}",
        "http://127.0.0.1:{port}.evil.example",
    ],
)
def test_other_origins_are_refused(server: LiveServer, origin: str) -> None:
    headers = {"Host": f"127.0.0.1:{server.port}", "Origin": origin.format(port=server.port)}
    status, _, content = ask(server, "/rows", headers=headers)
    assert status == 403
    assert b"gradient" not in content


@pytest.mark.parametrize(
    ("path", "site", "mode", "status"),
    [
        ("/rows", "same-origin", "cors", 200),
        ("/rows", "none", "navigate", 200),
        ("/rows", "cross-site", "no-cors", 403),
        ("/rows", "same-site", "cors", 403),
        ("/rows", "cross-site", "navigate", 403),
        ("/", "cross-site", "navigate", 200),
        ("/", "cross-site", "no-cors", 403),
    ],
)
def test_what_the_browser_says_of_the_asking_site_is_heard(server, path, site, mode, status) -> None:
    assert ask(server, path, headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode})[0] == status


def test_a_token_is_asked_for_before_any_row(guarded: LiveServer) -> None:
    assert guarded.url.endswith("/#token=a-token-of-ours")
    for headers in ({}, {"Authorization": "Bearer wrong-token"}, {"Authorization": "Bearer é"}, {"Authorization": ""}):
        encoded = {name: value.encode().decode("latin-1") for name, value in headers.items()}
        status, answered, content = ask(guarded, "/rows?token=a-token-of-ours", headers=encoded)
        assert status == 401
        assert answered["WWW-Authenticate"] == "Bearer"
        assert b"gradient" not in content
    assert ask(guarded, "/rows", headers={"Authorization": "Bearer a-token-of-ours"})[0] == 200
    assert ask(guarded, "/")[0] == 200  # the page holds no data
    assert b"a-token-of-ours" not in ask(guarded, "/")[2]


def test_beyond_the_loopback_there_is_a_token_whatever_was_asked(run: Path) -> None:
    with LiveServer(run, host="0.0.0.0", port=0) as first, LiveServer(run, host="0.0.0.0", port=0) as second:
        assert first.token
        assert len(first.token) >= 32
        assert first.token != second.token
        assert first.url == f"http://{socket.gethostname()}:{first.port}/#token={first.token}"


def test_beyond_the_loopback_rows_need_the_token_under_any_name(run: Path) -> None:
    for server in serving(LiveServer(run, host="0.0.0.0", port=0)):
        named = {"Host": f"machine.example:{server.port}"}
        assert ask(server, "/rows", headers=named)[0] == 401
        assert ask(server, "/rows", headers=named | {"Authorization": f"Bearer {server.token}"})[0] == 200
        other = named | {"Authorization": f"Bearer {server.token}", "Origin": "http://evil.example"}
        assert ask(server, "/rows", headers=other)[0] == 403


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 201, "with space", "a/b/c/d/e", "ünïcödeünïcöde", "line\nbreak12"]
)
def test_tokens_that_are_none(run: Path, token: str) -> None:
    with pytest.raises(UsageError, match="a token has 8 to 200"):
        LiveServer(run, port=0, token=token)


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.1.1.1", False),
        ("localhost.example", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_what_the_loopback_is(host: str, is_one: bool) -> None:
    assert is_loopback(host) == is_one


def test_a_port_in_use_is_replaced_unless_it_was_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(server_module, "USUAL_PORT", port)
        with LiveServer(run) as server:
            assert server.port != port
        with pytest.raises(UsageError, match=f"cannot listen at 127.0.0.1:{port}: .*leave --port out") as caught:
            LiveServer(run, port=port)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_a_host_that_is_none_of_this_machine(run: Path, host: str) -> None:
    with pytest.raises(UsageError, match=r"no address of this machine|cannot listen"):
        LiveServer(run, host=host)


def test_huge_and_broken_requests_are_refused_and_the_server_lives(server: LiveServer) -> None:
    own = f"Host: 127.0.0.1:{server.port}\r\n".encode()
    requests = [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + own + b"\r\n",
        b"GET / HTTP/1.1\r\n" + own + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + own + b"".join(b"X-%d: 1\r\n" % k for k in range(500)) + b"\r\n",
        b"GET / HTTP/9.9\r\n" + own + b"\r\n",
        b"GET / HTTP/one\r\n\r\n",
        b"<script>alert(1)</script> / HTTP/1.1\r\n\r\n",
        b"GET  /\r\n\r\n",
        b"\x00\xff\xfe\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # the beginning of a TLS connection
        b"\r\n\r\n",
        b"",
    ]
    for request in requests:
        answer = raw(server, request)
        assert b"gradient" not in answer
        assert b"<script>" not in answer
        assert not answer.startswith(b"HTTP/1.0 200")
    assert ask(server, "/rows")[0] == 200


def test_slow_clients_are_cut_off_and_do_not_stop_others(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.6)
    for server in serving(LiveServer(run, port=0)):
        slow = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(10)]
        for line in slow:
            line.sendall(b"GET /rows HTTP/1.1\r\nX: ")
        assert ask(server, "/rows")[0] == 200
        for _ in range(15):  # a byte now and then does not keep a line open
            time.sleep(0.1)
            for line in slow:
                with contextlib.suppress(ConnectionError):
                    line.sendall(b"a")
        for line in slow:
            with contextlib.suppress(ConnectionError):
                assert line.recv(100) == b""
            line.close()


def test_connections_are_bounded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 3)
    for server in serving(LiveServer(run, port=0)):
        held = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(3)]
        time.sleep(0.5)
        assert raw(server, b"GET /rows HTTP/1.1\r\n\r\n") == b""
        for line in held:
            line.close()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if ask(server, "/rows")[0] == 200:
                    break
            except (ConnectionError, http.client.HTTPException):
                time.sleep(0.05)
        else:
            raise AssertionError("the server no longer answers")


def test_a_viewer_that_goes_away_says_nothing(server: LiveServer, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # resets
            line.sendall(f"GET /rows HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
    assert ask(server, "/rows")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_viewers_at_once_all_get_all_rows(run: Path) -> None:
    store, cell = begin(run)
    for server in serving(LiveServer(run, port=0)):
        got: list[int] = []

        def look(server: LiveServer = server, got: list[int] = got) -> None:
            got.extend(len(json.loads(ask(server, "/rows")[2])["points"]) for _ in range(5))

        viewers = [threading.Thread(target=look) for _ in range(4)]
        for viewer in viewers:
            viewer.start()
        store.append(rows_of(cell, 1))
        store.flush()
        for viewer in viewers:
            viewer.join()
        assert len(got) == 20
        assert set(got) <= {8, 16}


def test_names_that_are_markup_are_text_of_json(run: Path) -> None:
    store, cell = begin(run)
    odd = [HOSTILE, "</script>", "\u2028\u2029", "\x00\x1f", "é\U0001f600", '"\\']
    store.append(Record(cell, 0, name, name, name, 1.0, name) for name in odd)
    store.close()
    for server in serving(LiveServer(run, port=0)):
        _, headers, content = ask(server, "/rows")
        assert headers["Content-Type"] == "application/json"
        names = {made[2] for made in json.loads(content)["series"]}
        assert set(odd) <= names


def test_the_address_of_the_other_loopback(run: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("there is no IPv6 here")
    with LiveServer(run, host="::1", port=0) as server:
        assert server.url == f"http://[::1]:{server.port}/"
        assert server.token is None
    assert os.path.exists(run)
