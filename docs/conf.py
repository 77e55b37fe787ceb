"""How Sphinx builds the site: `make docs`, offline, warnings as errors."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "pyro_arbuf"
author = "The pyro_arbuf developers"
copyright = author
release = metadata.version("pyro-arbuf")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "mathml",
    "pages_from_files",
]
templates_path = ["_templates"]
exclude_patterns = ["_ext", "_templates", "drawings"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3

html_theme = "furo"
html_math_renderer = "mathml"
html_title = "pyro_arbuf"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["llms.txt"]
html_copy_source = False
html_use_index = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Docstrings: Google sections, and shapes between single backticks, which are code.
default_role = "code"
autosummary_generate = True
autosummary_imported_members = True
autodoc_mock_imports = ["jax", "numpyro", "pytensor"]  # of the bridges, which need environments of their own
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style")]

# Every reference to a name of ours must exist, but for types that are no part of the API.
# Types of other packages cannot be looked up offline.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!pyro_arbuf\.).*"),
    (r"py:class", r"pyro_arbuf\.(network|inference|distributions\.base|programs\.(same_law|known_truth))\..*"),
]
