"""From a trained network to a served model.

    python examples/serve.py 8000
    curl -d '[[[0, 0.3, …], …]]' http://localhost:8000      # 8 × 8 pixels of each digit, in [0, 1]

It trains a network on scikit-learn's digits, makes it sparse, saves it, loads it again as another
process would, compiles it, and answers samples in JSON with classes. What does not fit is answered
by one line and status 400.
"""

import json
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

import simplicit
from simplicit import data, explicit


def made(folder: str) -> None:
    """Train a network, make it sparse, and save the model."""
    digits = data.load("digits")
    net = explicit.build("fnn", [64, 32, 16, 10])
    explicit.train(net, digits.train_inputs, digits.train_labels, lr=0.003, epochs=30)
    simplicit.implicitize(net, digits.train_inputs, sparsity=0.9).save(folder)


def handler(fast: Callable[[np.ndarray], np.ndarray]) -> type[BaseHTTPRequestHandler]:
    """Answer with the classes of a compiled model."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            try:
                samples = np.array(json.loads(self.rfile.read(length)), np.float32)
                answer, status = {"classes": fast(samples).argmax(1).tolist()}, 200
            except (ValueError, TypeError, simplicit.InputError, RuntimeError) as error:
                answer, status = {"error": str(error)}, 400
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def server(folder: str, port: int) -> ThreadingHTTPServer:
    """Load a model, compile it, and listen."""
    fast = simplicit.compile(simplicit.load(folder), batch=8)
    print(fast, file=sys.stderr)
    return ThreadingHTTPServer(("localhost", port), handler(fast))


if __name__ == "__main__":
    made("digits-90")
    server("digits-90", int(sys.argv[1]) if len(sys.argv) > 1 else 8000).serve_forever()
