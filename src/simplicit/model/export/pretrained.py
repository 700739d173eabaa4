"""Models in folders as Hugging Face keeps them: the saved model, `config.json` and a card.

`model.json` and `model.safetensors` are all that is read. `config.json` is what the hub looks for.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from simplicit.errors import InputError
from simplicit.model.archive.format import HEADER, NUMBERS
from simplicit.model.export.card import card
from simplicit.model.implicit import ImplicitModel
from simplicit.model.saved import load
from simplicit.system.extras import package
from simplicit.system.files import replace_with

CONFIG, CARD = "config.json", "README.md"

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""owner/name."""


def save_pretrained(
    model: ImplicitModel, folder: Path, figures: Mapping[str, float | str] | None = None
) -> None:
    """Write a model, its card and `config.json`.

    Args:
        model: The model.
        folder: Where to; made if it does not exist.
        figures: What was measured, for the card.

    Raises:
        InputError: If something cannot be written; then nothing is left behind.
    """
    config = {
        "model_type": "simplicit",
        "architectures": [type(model).__name__],
        "torch_dtype": str(model.equations.like.dtype).removeprefix("torch."),
    }
    title = folder.absolute().name or "model"
    texts = {CONFIG: json.dumps(config, indent=2) + "\n", CARD: card(model, title, figures or {})}
    try:
        with ExitStack() as stack:  # nothing is renamed before the model itself is there
            for name, text in texts.items():
                path = stack.enter_context(replace_with(folder / name))
                with path.open("wb") as file:
                    file.write(text.encode())
                    file.flush()
                    os.fsync(file.fileno())
            model.save(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot write the model ({error.strerror})") from None


def from_pretrained(name: str | Path, revision: str | None = None) -> ImplicitModel:
    """Read a model from a folder, or fetch it from the hub.

    Args:
        name: A folder, or an id `owner/name` of the hub where there is no such folder.
        revision: Branch, tag or commit of the hub.

    Returns:
        The model, on the CPU.

    Raises:
        InputError: If there is no such folder and no such id, a file is damaged, or the hub's
            library is not installed or finds nothing.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise InputError(f"revision {revision!r} of the folder {name}: accepted is a hub id")
        return load(name)
    if not HUB_ID.fullmatch(str(name)):
        raise InputError(f"{name}: accepted are a folder of save_pretrained and an id owner/name")
    hub = package("huggingface_hub")
    try:
        # no other file of a repository is asked for
        fetched = hub.snapshot_download(
            str(name), revision=revision, allow_patterns=[HEADER, NUMBERS]
        )
    except Exception as error:  # its own, and those of its connection
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name}: neither a folder nor found on the hub ({reason})") from None
    return load(fetched)
