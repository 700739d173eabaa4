"""`simplicit verify`: the results again from the saved models alone, beside the record."""

from pathlib import Path
from typing import Any

from simplicit.data import datasets as data
from simplicit.errors import InputError
from simplicit.explicit import training as explicit
from simplicit.lab.config import config
from simplicit.lab.results import read
from simplicit.model.saved import load

Row = dict[str, Any]


def verify(folder: Path) -> list[Row]:
    """Recompute sparsity, well-posedness and test accuracy from the saved models alone.

    Args:
        folder: A finished run folder.

    Returns:
        One row per number: model, seed, quantity, recorded, recomputed, same.

    Raises:
        InputError: If the folder holds no results, or a model that is damaged.
    """
    settings = config.load_kept(folder)
    recorded = [row for row in read.metrics(folder) if row["model"] == "implicit"]
    if not recorded:
        raise InputError(f"{folder}/metrics.json: no implicit model is recorded, nothing to verify")
    dataset = data.load(settings.evaluation.dataset, settings.data_dir)
    # another number of threads may round one sample across a decision boundary
    slack = {"test_accuracy": 2.5 / len(dataset.test_labels), "certificate_norm": 1e-12}
    rows = []
    for row in recorded:
        seed = row.get("seed")
        model = load(folder if seed == settings.seeds[0] else folder / f"seed-{seed}")
        one_channel = model.input_shape == (1, *dataset.test_inputs.shape[1:])
        taken = dataset.with_channel() if one_channel else dataset
        certificate = model.certificate
        quantities = {
            "nonzeros": model.nonzeros,
            "sparsity": model.sparsity,
            "test_accuracy": explicit.accuracy(
                model, taken.test_inputs, taken.test_labels, settings.evaluation.bs
            ),
            "certificate_norm": certificate.norm,
            "well_posed": certificate.well_posed,
        }
        for name, value in quantities.items():
            # a number that is missing is nan, which equals nothing
            same = abs(value - read.number(row.get(name))) <= slack.get(name, 0.0)
            record = {"model": "implicit", "seed": seed, "quantity": name}
            rows.append({**record, "recorded": row.get(name), "recomputed": value, "same": same})
    return rows
