"""A threaded HTTP/1.1 server that logs every request and can be told to fail; the protocols are its subclasses."""

from __future__ import annotations

import base64
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

FOREVER = 1 << 62


@dataclass(frozen=True)
class Call:
    """A request as it came in. `segments` are the parts of the path, unquoted one by one: `refs%2Fconvert` is one."""

    method: str
    path: str
    segments: tuple[str, ...]
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def token(self) -> str | None:
        """The bearer token, or the password of basic authentication, which is how W&B's key arrives."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            return base64.b64decode(token).decode().partition(":")[2]
        return token if scheme == "Bearer" else None

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One line of the log: what was asked, what was answered, and how many bytes of body went each way."""

    method: str
    path: str
    status: int
    received_bytes: int
    sent_bytes: int
    token: str | None
    range: str | None
    user_agent: str


@dataclass
class _Fault:
    pattern: re.Pattern[str]
    method: str | None
    times: int
    response: Response | None = None
    cut_after: int | None = None
    stall_seconds: float = 0.0
    removed: threading.Event = field(default_factory=threading.Event)

    def takes(self, call: Call) -> bool:
        if self.times <= 0 or self.method not in (None, call.method) or not self.pattern.search(call.path):
            return False
        self.times -= 1
        return True


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class LoopbackServer:
    """Serves on free ports of 127.0.0.1 while it is entered; subclasses implement `respond`.

    Faults are matched, first added first, by a regular expression that is searched in the unquoted path, and by the
    method if there is one.
    """

    def __init__(self, ports: int = 1) -> None:
        self.requests: list[Request] = []
        # Bugs of the server itself, or requests that it does not understand; a test that sees any should fail.
        self.crashes: list[Exception] = []
        self._faults: list[_Fault] = []
        # Handlers run in threads of their own; protocol state is only touched under this lock.
        self._lock = threading.RLock()
        self._servers = [_Server(self) for _ in range(ports)]
        self.urls = [f"http://127.0.0.1:{server.server_port}" for server in self._servers]

    @property
    def url(self) -> str:
        return self.urls[0]

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def respond(self, call: Call) -> Response:
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the log and the faults."""
        with self._lock:
            self.requests.clear()
            self.crashes.clear()
            self.heal()

    def fail(
        self,
        path_pattern: str,
        status: int,
        *,
        times: int = FOREVER,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        message: str = "made to fail",
    ) -> None:
        """Answer matching requests with `status`, the first `times` of them, instead of serving them."""
        response = json_response({"error": message}, status, {"X-Error-Message": message, **(headers or {})})
        self._faults.append(_Fault(re.compile(path_pattern), method, times, response=response))

    def cut(self, path_pattern: str, after_bytes: int, *, times: int = FOREVER, method: str | None = None) -> None:
        """Close the connection of matching requests once `after_bytes` of the body are sent."""
        self._faults.append(_Fault(re.compile(path_pattern), method, times, cut_after=after_bytes))

    def stall(self, path_pattern: str, seconds: float, *, times: int = FOREVER, method: str | None = None) -> None:
        """Let matching requests wait before they are answered; never, where the fault is removed in the meantime."""
        self._faults.append(_Fault(re.compile(path_pattern), method, times, stall_seconds=seconds))

    def heal(self) -> None:
        """Remove all faults."""
        with self._lock:
            for fault in self._faults:
                fault.removed.set()
            self._faults.clear()

    def sent_bytes(self, path_pattern: str = "") -> int:
        """Bytes of body sent in answer to requests whose path matches."""
        return sum(request.sent_bytes for request in self.requested(path_pattern))

    def requested(self, path_pattern: str = "", method: str | None = None) -> list[Request]:
        """Logged requests whose path matches, in the order of their answers."""
        with self._lock:
            requests = list(self.requests)
        return [
            request
            for request in requests
            if re.search(path_pattern, request.path) and method in (None, request.method)
        ]

    def take_fault(self, call: Call) -> _Fault | None:
        with self._lock:
            return next((fault for fault in self._faults if fault.takes(call)), None)

    def log(self, call: Call, status: int, sent_bytes: int) -> None:
        request = Request(
            method=call.method,
            path=call.path,
            status=status,
            received_bytes=len(call.body),
            sent_bytes=sent_bytes,
            token=call.token,
            range=call.headers.get("Range"),
            user_agent=call.headers.get("User-Agent", ""),
        )
        with self._lock:
            self.requests.append(request)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, loopback: LoopbackServer) -> None:
        self.loopback = loopback
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed or time out leave broken pipes, which are no news in a test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: object) -> None:
        """The log is `LoopbackServer.requests`."""

    def _serve(self) -> None:
        url = urlsplit(self.path)
        call = Call(
            method=self.command,
            path=unquote(url.path),
            segments=tuple(unquote(segment) for segment in url.path.strip("/").split("/")),
            query=parse_qs(url.query),
            headers=self.headers,  # type: ignore[arg-type]
            body=self._read_body(),
        )
        loopback = self.server.loopback
        fault = loopback.take_fault(call)
        if fault and fault.stall_seconds and fault.removed.wait(fault.stall_seconds):
            self.close_connection = True
            return
        try:
            response = fault.response if fault and fault.response else loopback.respond(call)
        except Exception as error:  # noqa: BLE001 - kept for the test, which must not wait for an answer that never comes
            loopback.crashes.append(error)
            response = json_response({"error": f"{type(error).__name__}: {error}"}, 500)
        self._send(call, response, fault.cut_after if fault else None)

    def _send(self, call: Call, response: Response, cut_after: int | None) -> None:
        body = b"" if call.method == "HEAD" else response.body
        if cut_after is not None:
            body = body[:cut_after]
        # Before the bytes go out: a client that has its answer must find the request in the log.
        self.server.loopback.log(call, response.status, len(body))
        self.send_response(response.status)
        if response.status != 204:
            self.send_header("Content-Length", str(len(response.body)))
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if cut_after is not None:
            self.close_connection = True

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)
