# mypy: ignore-errors
"""LitServe at its best here: batches of up to 8, the fastest type, equal requests in one pipeline call."""

from __future__ import annotations

import sys

import litserve

from .drawing import draw, fast, load

BATCH, WAIT = 8, 0.05
"""Requests in a batch at most, and seconds that an incomplete one waits for more."""


class Pictures(litserve.LitAPI):
    def setup(self, device):
        self.pipe = load(fast())

    def predict(self, requests):
        return draw(self.pipe, requests)

    def encode_response(self, output):
        return {"image_base64": output}


if __name__ == "__main__":
    api = Pictures(max_batch_size=BATCH, batch_timeout=WAIT, api_path="/generate")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
