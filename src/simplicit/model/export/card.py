"""The card of a model: a page with its figures, and what Hugging Face reads above it."""

from collections.abc import Mapping
from typing import Any

import yaml

from simplicit.model.implicit import ImplicitModel

PAGE = """---
{front}---

# {title}

A sparse implicit model, made by simplicit from a trained PyTorch network:
x = φ(Ax + Bu + b), y = Cx + Du + d.

{table}
```python
import torch
import simplicit

model = simplicit.ImplicitModel.from_pretrained(".")  # this folder, or its id on the hub
{call}
```

Non-zero weights are those of A, B, C, D. Shared weights count once; biases, and operations that are
kept as they are, do not count. Sparsity is measured against the network's own non-zero weights. The
certificate proves that the equation has exactly one solution, of the stored weights and in exact
arithmetic.
"""
"""README.md of the folder."""


def card(model: ImplicitModel, title: str, figures: Mapping[str, float | str]) -> str:
    """Write the page.

    Args:
        model: The model.
        title: Its heading.
        figures: What was measured, by name, e.g. `accuracy`.

    Returns:
        Markdown, with YAML above it.
    """
    front: dict[str, Any] = {
        "library_name": "simplicit",
        "tags": ["implicit-model", "sparse", "pruning", model.structure],
    }
    if measured := [name for name, value in figures.items() if not isinstance(value, str)]:
        front["metrics"] = measured
    rows = {**_facts(model), **{name: _shown(value) for name, value in figures.items()}}
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return PAGE.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        title=" ".join(title.split()),
        table="\n".join(["| | |", "|---|---|", *lines, ""]),
        call=_call(model),
    )


def _facts(model: ImplicitModel) -> dict[str, str]:
    interface = model.equations.interface
    outputs = [] if interface is None else interface.outputs
    shapes = [f"({', '.join(['m', *map(str, output.shape)])})" for output in outputs]
    return {
        "structure": model.structure,
        "inputs": ", ".join(map(str, model.equations.inputs)),
        "states": f"{model.n:,}",
        "outputs": ", ".join(shapes) or f"(m, {model.q})",
        "layers": f"{len(model.blocks)} hidden",
        "numbers": str(model.equations.like.dtype).removeprefix("torch."),
        "non-zero weights": f"{model.nonzeros:,} of {model.reference_nonzeros:,}",
        "sparsity": f"{model.sparsity:.4f}",
        "certificate": str(model.certificate),
    }


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _call(model: ImplicitModel) -> str:
    given = []
    for i in model.equations.inputs:
        shape = ", ".join(["1", *map(str, i.shape)])
        dtype = f", dtype=torch.{i.dtype}" if i.dtype else ""
        given.append(f"{f'{i.name}=' if i.name else ''}torch.zeros({shape}{dtype})")
    return f"y = model({', '.join(given)})"
