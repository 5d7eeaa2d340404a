"""The site: ``sphinx-build -W -b html docs OUT``, without a network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pictures

from pyterrier_mechir import __version__

project = "pyterrier_mechir"
author = "The pyterrier_mechir developers"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "generated", "mathml"]
exclude_patterns = ["_build"]
smartquotes = False

myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 3

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False

nitpicky = True
nitpick_ignore = [  # PyTerrier, transformers, and the vocabulary of any ranker
    ("py:exc", "pt.validate.InputValidationError"),
    ("py:class", "PreTrainedTokenizerBase"),
    ("py:class", "Vocabulary"),
]

copybutton_prompt_text = ">>> "
html_theme = "furo"
html_title = "pyterrier_mechir"
html_show_copyright = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

pictures.draw_all()
