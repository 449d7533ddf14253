"""An extension of griffe, which reads the package for mkdocstrings: docstrings become Markdown."""

import griffe
from site_reference import to_markdown


class Docstrings(griffe.Extension):
    """Turns every docstring to Markdown once it is read."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
