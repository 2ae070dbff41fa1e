"""Makes the documentation site: collects pages as Markdown, has Sphinx render them, and checks every link.

``python -m sitemaker TARGET``, with the folder ``docs`` on the path. Pages are the guides in ``docs``, pages of the
repository's root, and the reference, which is written from the docstrings. What Sphinx is given is Markdown too, so
that every page has its Markdown beside it.
"""
