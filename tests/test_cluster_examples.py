"""What `examples/cluster` starts works together, as processes on the loopback address."""

import contextlib
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
EXAMPLES, CONFIGS = ROOT / "examples", ROOT / "configs"
QUICK = ("explicit.epoch=1", "implicit.sweeps=0", "evaluation.speed=false")


def test_jobs_of_a_queue_take_part(tmp_path):
    pytest.importorskip("dask_jobqueue")
    command = [sys.executable, EXAMPLES / "cluster" / "slurm.py", "--here"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d,\d{3} of 44,400 weights, by 2 jobs\n", done.stdout)


def test_the_commands_of_a_manifest_work_together(tmp_path):
    pytest.importorskip("distributed")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    text = (EXAMPLES / "cluster" / "kubernetes.yaml").read_text("utf-8")
    documents = [*yaml.safe_load_all(text)]
    commands = {}
    for document in documents:
        if document["kind"] != "Service":
            for container in document["spec"]["template"]["spec"]["containers"]:
                own = [part.replace("simplicit-scheduler", "127.0.0.1").replace("8786", str(port))
                       for part in container["command"]]  # fmt: skip
                commands[container["name"]] = [sys.executable, "-m", *own]
    run = commands["run"]
    run[run.index("/config/run.yaml")] = str(CONFIGS / "digits.yaml")
    run[run.index("/runs/first")] = str(tmp_path / "first")
    with contextlib.ExitStack() as stack:
        for name in ("scheduler", "worker"):
            log = stack.enter_context((tmp_path / name).open("wb"))
            process = subprocess.Popen(commands[name], stdout=log, stderr=log, cwd=tmp_path)
            stack.callback(process.wait)
            stack.callback(process.kill)
            if name == "scheduler":
                while f":{port}" not in (tmp_path / name).read_text():
                    time.sleep(0.05)
        while "Starting established connection" not in (tmp_path / "worker").read_text():
            time.sleep(0.05)
        done = subprocess.run([*run, *QUICK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first" / "model.safetensors").exists()
