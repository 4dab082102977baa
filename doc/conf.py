project = "Deferred NumPy"
extensions = ["numpydoc", "sphinx.ext.autodoc"]
html_theme = "pydata_sphinx_theme"
exclude_patterns = ["changes"]
numpydoc_show_class_members = False
