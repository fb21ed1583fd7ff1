"""HTTP on a connection: uvicorn's, but for its answer to what is no HTTP."""

from __future__ import annotations

import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from triptych.serving.problems import Problem

NOT_HTTP = Problem(400, "this is no HTTP/1.1 request that can be read.", "bad_request")


class Protocol(H11Protocol):
    """Answers in the shape of all other errors; uvicorn writes a line of text."""

    def send_400_response(self, msg: str) -> None:
        body = json.dumps(NOT_HTTP.body).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        head = h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()
