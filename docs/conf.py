"""Sphinx settings. Pages are Markdown, formulas become MathML, figures are drawn: offline.

.venv/bin/sphinx-build -W docs docs/_build
"""

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

import simplicit

sys.path.insert(0, str(Path(__file__).parent))
import gallery

project = "simplicit"
author = "the simplicit authors"
copyright = author
release = version = simplicit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_gallery"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# links to files of the repository outside the documentation stay what they are
suppress_warnings = ["myst.xref_missing"]

html_theme = "furo"
html_title = f"simplicit {version}"
html_math_renderer = "mathml"
html_copy_source = False
html_static_path = ["_static"]

# shapes are in the docstrings, in words; jaxtyping's in the signature would drown the names
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "code"
napoleon_use_rtype = False


def mathml(tex: str, block: bool) -> str:
    """Convert a formula. Bars keep the size of a letter, or browsers pair up the wrong ones.

    Returns:
        The element.
    """
    bars = r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>'
    return re.sub("<mo[^>]*>([|‖])</mo>", bars, tex2mathml(tex, as_block=block))


def inline_math(self: Any, node: nodes.math) -> None:
    """Write a formula in a line.

    Raises:
        SkipNode: Always: nothing inside is visited.
    """
    self.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def block_math(self: Any, node: nodes.math_block) -> None:
    """Write a displayed formula, which scrolls where the page is too narrow.

    Raises:
        SkipNode: Always: nothing inside is visited.
    """
    self.body.append(f'<div class="formula">{mathml(node.astext(), block=True)}</div>\n')
    raise nodes.SkipNode


def plain_marks(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keep reStructuredText from reading |A| and (m, *shape) in a docstring as markup."""
    lines[:] = [re.sub(r"\||(?<=[ (])\*(?=\w+[,)])", r"\\\g<0>", line) for line in lines]


def figures(app: Sphinx) -> None:
    """Draw the gallery's figures where they are missing or older than the code."""
    if gallery.stale():
        gallery.build()


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.connect("builder-inited", figures)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.add_css_file("formulas.css")
    app.connect("autodoc-process-docstring", plain_marks)
