"""What each setting means, in the words that stand beside it in `config.py`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from functools import lru_cache

from speedrun import config


@lru_cache(maxsize=1)
def explain_settings() -> dict[str, str]:
    """First sentences of the notes under all settings, by dotted key."""
    notes = {
        node.name: dict(_notes(node))
        for node in ast.parse(inspect.getsource(config)).body
        if isinstance(node, ast.ClassDef)
    }
    explained = {}
    for name, hint in typing.get_type_hints(config.RunConfig).items():
        explained[name] = notes["RunConfig"].get(name, "")
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            explained |= {f"{name}.{key}": note for key, note in notes[hint.__name__].items()}
    return explained


def _notes(node: ast.ClassDef) -> list[tuple[str, str]]:
    """Names of fields and the string under each."""
    found = []
    for field, note in zip(node.body, node.body[1:], strict=False):
        match field, note:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                sentence = " ".join(text.split()).partition(". ")[0]
                found.append((name, sentence.rstrip(".")))
    return found
