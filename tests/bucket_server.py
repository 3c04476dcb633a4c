"""A bucket on this machine, with the faults that real ones have; or as a program, which serves one.

It is `gcp-storage-emulator` in memory, on the loopback interface alone. The emulator ignores the
precondition `ifGenerationMatch`, by which an object is created only if absent: it is added here.
"""

import argparse
import contextlib
import functools
import http.server
import io
import json
import logging
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler, Router
from gcp_storage_emulator.storage import Storage

RESET = 0  # In place of a status: the connection is reset in the middle of the request.
BUCKET = "runs"


class Bucket:
    """The server. `fault(method, path)` returns None, or a status to answer with, or RESET."""

    def __init__(self, port: int = 0):
        self.storage, self.lock = Storage(use_memory_fs=True), threading.Lock()
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.latency, self.requests = 0.0, []
        buckets.create_bucket(BUCKET, self.storage)
        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        self._server = _Server(("127.0.0.1", port), functools.partial(_Handler, self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        # What gcsfs and google-cloud-storage read, and what TensorStore reads.
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.endpoint,
            "TENSORSTORE_GCS_HTTP_URL": self.endpoint,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # Else TensorStore looks for a real one.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # Else gcsfs asks the real service.
        }

    def __enter__(self) -> "Bucket":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """Removes all objects and faults."""
        self.fault, self.latency = lambda method, path: None, 0.0
        self.requests.clear()
        with self.lock:
            self.storage.objects.pop(BUCKET, None)

    def names(self) -> list[str]:
        """Names of all objects."""
        with self.lock:
            return sorted(self.storage.objects.get(BUCKET, {}))

    def read(self, name: str) -> bytes:
        with self.lock:
            return self.storage.get_file(BUCKET, name)

    @contextlib.contextmanager
    def failing(self, fault: int, methods: str = "GET POST PUT DELETE", path: str = "") -> Iterator:
        """Answers requests of some methods, to paths that match, by a fault."""
        self.fault = lambda method, where: (
            fault if method in methods.split() and re.search(path, where) else None
        )
        try:
            yield
        finally:
            self.fault = lambda method, path: None


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Prints nothing: clients that are killed leave broken connections."""


class _Handler(RequestHandler):
    def __init__(self, bucket: Bucket, *args: object):
        self.bucket = bucket
        super().__init__(bucket.storage, *args)

    def end_headers(self) -> None:
        # TensorStore needs it, and the emulator has it in the description of the object alone.
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).partition("/o/")[2]
        found = self.bucket.storage.objects.get(BUCKET, {}).get(name)
        if self.command == "GET" and found:
            self.send_header("x-goog-generation", found["generation"])
        super().end_headers()

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def _answer(self, method: str) -> None:
        time.sleep(self.bucket.latency)
        path = urllib.parse.unquote(self.path)
        self.bucket.requests.append((method, path))
        fault = self.bucket.fault(method, path)
        if fault == RESET:
            self._reset()
        elif fault:
            self._refuse(fault)
        else:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)  # Before the lock is taken: a client may be killed.
            if size:
                self.rfile = io.BytesIO(body)
            with self.bucket.lock:
                if self._precondition_holds(body):
                    Router(self).handle(method)
                else:
                    self._refuse(412)

    def _reset(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _refuse(self, status: int) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        message = {403: "no permission", 412: "precondition failed"}.get(status, "try again")
        body = json.dumps({"error": {"code": status, "message": message}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _precondition_holds(self, body: bytes) -> bool:
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        if "ifGenerationMatch" not in query:
            return True
        if "name" in query:
            name = query["name"][0]
        elif query.get("uploadType") == ["multipart"]:
            name = json.loads(re.search(rb"{.*?}", body)[0])["name"]
        else:
            name = urllib.parse.unquote(url.path.split("/o/")[-1])
        try:
            now = self.bucket.storage.get_file_obj(BUCKET, name)["generation"]
        except NotFound:
            now = "0"
        return query["ifGenerationMatch"][0] == now


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of each request")
    args = parser.parse_args()
    with Bucket(args.port) as bucket:
        bucket.latency = args.latency
        text = "\n".join(f"export {key}={value}" for key, value in bucket.environment.items())
        print(text, flush=True)
        threading.Event().wait()
