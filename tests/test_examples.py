"""The examples do what they say."""

import importlib.util
import json
import threading
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

import simplicit
from small_run import hurry, small_run

SERVE = Path(__file__).parents[1] / "examples" / "serve.py"


def test_a_model_is_served(tmp_path, monkeypatch):
    hurry(monkeypatch)
    folder = small_run(tmp_path / "run")
    spec = importlib.util.spec_from_file_location("serve", SERVE)
    assert spec is not None and spec.loader is not None
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    with serve.server(str(folder), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(samples: object) -> dict:
            connection = HTTPConnection("localhost", server.server_port)
            connection.request("POST", "/", json.dumps(samples))
            found = json.loads(connection.getresponse().read())
            connection.close()
            return found

        u = np.random.default_rng(0).random((5, 8, 8), np.float32)
        wanted = simplicit.load(folder)(u).argmax(1).tolist()
        assert ask(u.tolist()) == {"classes": wanted}
        assert "accepted is" in ask([[1.0, 2.0]])["error"]
        assert "no equilibrium" in ask([[[float("nan")] * 8] * 8])["error"]
        server.shutdown()
