"""Runs the small configuration that the documentation shows, and writes the gallery's page.

`sphinx-build` calls `build` when the figures are older than the code. By hand:
`python docs/gallery.py`.
Everything is made offline, from scikit-learn's digits, in about a minute.
"""

import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType

from simplicit.lab.config.config import load, load_each
from simplicit.lab.plots import COMPARED, FIGURES, ROBUSTNESS
from simplicit.lab.run.compare import compare
from simplicit.lab.run.run import run

DOCS = Path(__file__).parent
FOLDER = DOCS / "_gallery"
PAGE = FOLDER / "figures.md"
CONFIG = DOCS.parent / "configs" / "digits.yaml"

ROBUST = (
    "implicit.objective=robustness",
    "implicit.robustness=0.01",
    "evaluation.metric=robustness",
    "evaluation.samples=200",
)
SPARSITIES = (
    "implicit.sparsity=[0.5,0.7,0.8,0.9,0.95]",
    "evaluation.baselines=[explicit,implicit,magnitude,wanda,obs,gmp]",
)
PARTS = (
    ("A run", "digits", FIGURES, "run", ()),
    ("A run with metric robustness", "robust", ROBUSTNESS, "run", ROBUST),
    ("A comparison of sparsities", "compare", COMPARED, "compare", SPARSITIES),
)
"""Heading, folder, figures, command and changed keys of each part of the page."""


def build() -> None:
    """Make the three folders again, and the page that shows their figures."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    run(load(CONFIG, []), FOLDER / "digits")
    run(load(CONFIG, list(ROBUST)), FOLDER / "robust")
    compare(load_each(CONFIG, list(SPARSITIES)), FOLDER / "compare")
    PAGE.write_text("\n".join(part(*each) for each in PARTS), encoding="utf-8")


def part(
    heading: str, folder: str, figures: dict[str, ModuleType], command: str, keys: tuple[str, ...]
) -> str:
    """Write one part of the page: the command, then each figure under its title.

    Returns:
        Markdown.
    """
    words = ["simplicit", command, "configs/digits.yaml", *map(shlex.quote, keys)]
    lines = [
        f"## {heading}\n",
        "```sh\n" + " \\\n    ".join([" ".join(words[:3]), *words[3:]]),
        "```\n",
    ]
    for name, figure in figures.items():
        look, shown = split(figure.CAPTION)
        lines += [
            f"### {figure.TITLE}\n",
            f"![{figure.TITLE}](_gallery/{folder}/plots/{name}.png)\n",
        ]
        lines += [f"{shown}\n", f"**{look}**\n"]
    return "\n".join(lines)


def split(caption: str) -> tuple[str, str]:
    """Take apart what to look at from what is drawn.

    Returns:
        The sentence of a caption that begins with "Look", and the rest.
    """
    sentences = re.split(r"(?<=\.) (?=[A-Z])", caption)
    look = [sentence for sentence in sentences if sentence.startswith("Look")]
    return " ".join(look), " ".join(s for s in sentences if s not in look)


def stale() -> bool:
    """Say whether the code or the configuration is newer than the page.

    Returns:
        Whether `build` has to be called.
    """
    sources = [CONFIG, *(DOCS.parent / "src").rglob("*.py"), Path(__file__)]
    return not PAGE.exists() or PAGE.stat().st_mtime < max(p.stat().st_mtime for p in sources)


if __name__ == "__main__":
    build()
