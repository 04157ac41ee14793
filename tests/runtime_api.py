"""Lambda's Runtime API (protocol: AWS Lambda developer guide, "Using the Lambda runtime API")."""

from __future__ import annotations

import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Silent: a runtime that is killed resets its connections."""


class RuntimeApi:
    """A context manager: hands out events one by one, lets the runtime wait in between; keeps what it answers."""

    def __init__(self, *events: dict[str, object], trace: str = "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700") -> None:
        self._answers: queue.Queue[str] = queue.Queue()
        self._asked = threading.Event()
        # None: it is over. Each event with the seconds that the function has for it.
        self._events: queue.Queue[tuple[dict[str, object], float] | None] = queue.Queue()
        for event in events:
            self.send(event)
        answers, waiting, asked = self._answers, self._events, self._asked

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # or headers and body leave apart, and each call waits for a delayed acknowledgement

            def do_GET(self) -> None:
                asked.set()
                found = waiting.get()
                if found is None:
                    waiting.put(None)  # for the next one that waits
                    return
                event, seconds = found
                body = json.dumps(event).encode()
                self.send_response(200)
                self.send_header("Lambda-Runtime-Aws-Request-Id", "request-1")
                self.send_header("Lambda-Runtime-Deadline-Ms", str(int((time.time() + seconds) * 1000)))
                self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:1:function:f")
                self.send_header("Lambda-Runtime-Trace-Id", trace)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                answers.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Silent."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def variables(self) -> dict[str, str]:
        """What Lambda sets for the runtime client."""
        return {
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_port}",
            "AWS_LAMBDA_FUNCTION_NAME": "f",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
            "AWS_LAMBDA_LOG_GROUP_NAME": "g",
            "AWS_LAMBDA_LOG_STREAM_NAME": "s",
        }

    def send(self, event: dict[str, object], seconds: float = 60.0) -> None:
        """The next invocation, and the seconds until its deadline."""
        self._events.put((event, seconds))

    def wait_asked(self, timeout: float) -> None:
        """Returns when the runtime has asked for its first event: its init is over. Raises TimeoutError."""
        if not self._asked.wait(timeout):
            raise TimeoutError("the runtime never asked for an event")

    def answer(self, timeout: float) -> str:
        """What the function answered, or its error as JSON. Raises queue.Empty after ``timeout`` seconds."""
        return self._answers.get(timeout=timeout)

    def __enter__(self) -> RuntimeApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._events.put(None)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
