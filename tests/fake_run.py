"""A run folder with everything a finished run writes, for the tests of plots and report."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from simplicit.equations.phi import Phi
from simplicit.model.equilibrium import Block
from simplicit.model.implicit import ImplicitModel

SIZES = {"4": 16, "2": 32, "0": 64}  # last hidden layer first
N, P, Q = 112, 784, 10
N0 = 784 * 64 + 64 * 32 + 32 * 16 + 16 * 10


def write_table(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def metrics(seeds=(0, 1, 2)) -> list[dict]:
    rows = []
    for seed in seeds:
        common = {"dataset": "FashionMNIST", "seed": seed}
        rows.append(
            {"model": "explicit", **common, "nonzeros": N0, "parameters": N0, "sparsity": 0.0,
             "test_accuracy": 0.8705 + 0.001 * seed, "seconds": 41.0, "bytes": 4 * N0}
        )  # fmt: skip
        rows.append(
            {"model": "implicit", **common, "nonzeros": N0 // 4, "parameters": N0 + 122 * 896,
             "sparsity": 0.75, "test_accuracy": 0.8592 + 0.002 * seed, "seconds": 23.5,
             "structure": "triangular", "objective": "sparsity", "kappa": None,
             "certificate_norm": 0.9873, "certificate_method": "nilpotent", "converged": 1.0,
             "max_residual": 0.0, "rows": 122, "rows_solved": 122, "max_relative_gap": 8.7e-5,
             "bytes": 107_000, "seconds_states": 1.2, "seconds_gram": 4.1, "seconds_solve": 18.2,
             "seconds_evaluate": 0.7}
        )  # fmt: skip
    return rows


def weights(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A teacher's kernels and sparse A, B, C, D that look like a real model's."""
    x = np.linspace(-1, 1, 28)
    centre = np.exp(-1.5 * (x[:, None] ** 2 + x[None, :] ** 2)).ravel()
    teacher = {
        "0.weight": rng.normal(size=(64, P)) * 0.05,
        "2.weight": rng.normal(size=(32, 64)) * 0.2,
        "4.weight": rng.normal(size=(16, 32)) * 0.3,
        "6.weight": rng.normal(size=(Q, 16)) * 0.4,
    }
    A, B, C, D = np.zeros((N, N)), np.zeros((N, P)), np.zeros((Q, N)), np.zeros((Q, P))
    A[:16, 16:48], A[16:48, 48:], C[:, :16] = (teacher[f"{i}.weight"] for i in (4, 2, 6))
    A[:16, 48:] = rng.normal(size=(16, 64)) * 0.05
    B[48:] = teacher["0.weight"] * 1.3
    B *= rng.random((N, P)) < 0.35 * centre
    A *= rng.random((N, N)) < 0.6
    C *= rng.random((Q, N)) < 0.8
    D[:, rng.integers(0, P, 40)] = 0.01
    return teacher, {"A": A, "B": B, "C": C, "D": D}


def write_model(run: Path, teacher: dict, matrices: dict) -> None:
    tensors = [torch.tensor(matrices[name], dtype=torch.float32) for name in "ABCD"]
    blocks = [Block(name, size, Phi("relu")) for name, size in SIZES.items()]
    model = ImplicitModel(
        *tensors, blocks=blocks, structure="triangular", input_shape=(P,), reference_nonzeros=N0
    )
    model.save(run)
    kernels = {k: np.ascontiguousarray(v, np.float32) for k, v in teacher.items()}
    save_file(kernels, run / "explicit.safetensors")


def fake_run(path: Path, seed: int = 0) -> Path:
    """Write a whole run folder.

    Returns:
        `path`.
    """
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    (path / "metrics.json").write_text(json.dumps(metrics()))
    (path / "config.yaml").write_text(
        "explicit:\n  type: fnn\n  architecture: [784, 64, 32, 16, 10]\n"
        "implicit:\n  sparsity: 0.75\n  tol: 0.0001\n"
        "  structure: triangular\n  training_size: 0.2\n"
        "evaluation:\n  dataset: FashionMNIST\n  bs: 64\n"
    )
    (path / "environment.json").write_text(
        json.dumps({"simplicit": "0.1.0", "python": "3.12.3", "torch": "2.13.0",
                    "platform": "Linux-6.1-x86_64", "cpus": 2, "threads": {"blas": 1}})
    )  # fmt: skip
    write_model(path, *weights(rng))

    budget = [
        {"seed": 0, "stage": stage, "layer": layer, "weights": int(size * share)}
        for share, stage in ((1, "network"), (0.5, "match"), (0.25, "sweep 9"))
        for layer, size in {"0": 784 * 64, "2": 2048, "4": 512, "6": 160}.items()
    ]
    write_table(path / "budget.csv", budget)
    trace, rows = [], []
    for layer, size in {"0": 64, "2": 32, "4": 16, "output": 10}.items():
        seconds = 0.0
        for iteration in range(40):
            seconds += 0.05 * size / 16
            median = 0.4 * 0.75 ** (iteration % 14) * 0.03 ** (iteration // 14)
            trace.append({"layer": layer, "seconds": round(seconds, 3), "iteration": iteration,
                          "gap_median": median / 20, "gap_max": median,
                          "solved": int(size * iteration / 40)})  # fmt: skip
        rows += [{"layer": layer, "row": i, "status": "solved", "gap": 1e-6,
                  "relative_gap": 10 ** rng.uniform(-8, -4.1), "objective": 0.01,
                  "bound": 0.0099, "nonzeros": int(rng.integers(20, 300)),
                  "iterations": int(rng.integers(8, 60))} for i in range(size)]  # fmt: skip
    write_table(
        path / "layers.csv",
        [{"seed": seed, "model": model, "layer": layer, "nonzeros": round(share * n)}
         for seed in range(3)
         for model, share in {"explicit": 1, "implicit": 0.25, "obs": 0.2}.items()
         for layer, n in {"0": 784 * 64, "2": 64 * 32, "4": 32 * 16, "6": 160}.items()],
    )  # fmt: skip
    write_table(path / "trace.csv", trace)
    write_table(path / "rows.csv", rows)
    write_table(
        path / "convergence.csv",
        [{"model": "implicit", "seed": seed, "step": step,
          "residual_median": (3.1, 0.8, 0.21, 0.0, 0.0)[step] * (1 + seed / 9),
          "residual_max": (9.0, 4.2, 1.9, 0.0, 0.0)[step] * (1 + seed / 9)}
         for seed in range(3) for step in range(5)],
    )  # fmt: skip
    return path
