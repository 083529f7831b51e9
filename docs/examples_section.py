"""Shows what stands under `Example:` in a docstring as code, as under `Examples:`, which the site's generator knows."""

from __future__ import annotations

import griffe


class ExamplesSection(griffe.Extension):
    """Rename the section before the docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
