"""How arguments and results are nested, as JSON; only Python's own containers.

``{"tuple": ["*", {"dict": [["features", "*"]]}]}`` is a tuple of a leaf and of a dict with a leaf.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch.utils import _pytree as pytree

from fastres.artifact.strict import of_type, text
from fastres.errors import ArtifactError

LEAF = "*"

_SEQUENCES: dict[str, type[Any]] = {"tuple": tuple, "list": list}
_MAPPINGS: dict[str, type[Any]] = {"dict": dict, "ordered_dict": OrderedDict}


class _Leaf:
    """A leaf of a structure, as a type that no container is."""


def structure_to_json(spec: pytree.TreeSpec, what: str) -> Any:
    """A structure of arguments or results as JSON.

    Raises:
        ArtifactError: it has a container of the user's own, which could not be made again without
            the user's code.
    """
    return _to_json(pytree.tree_unflatten([_Leaf() for _ in range(spec.num_leaves)], spec), what)


def _to_json(value: Any, what: str) -> Any:
    if isinstance(value, _Leaf):
        return LEAF
    for name, kind in _SEQUENCES.items():
        if type(value) is kind:
            return {name: [_to_json(item, what) for item in value]}
    for name, kind in _MAPPINGS.items():
        if type(value) is kind:
            keys = [key for key in value if type(key) not in (str, int)]
            if keys:
                raise ArtifactError(f"{what} hold a dict with the key {keys[0]!r}: use texts")
            return {name: [[key, _to_json(item, what)] for key, item in value.items()]}
    raise ArtifactError(
        f"{what} hold a {type(value).__module__}.{type(value).__qualname__}; a saved model holds "
        "no code, so only tuples, lists and dicts can be made again when it is loaded: return one "
        "of these (a NamedTuple as its fields, say)"
    )


def structure_from_json(data: Any, where: str) -> pytree.TreeSpec:
    """The structure that :func:`structure_to_json` wrote.

    Raises:
        ArtifactError: it is none.
    """
    return pytree.tree_structure(_from_json(data, where))


def _from_json(data: Any, where: str) -> Any:
    if data == LEAF:
        return 0
    entry = of_type(data, dict, where)
    if len(entry) == 1:
        ((name, inner),) = entry.items()
        if name in _SEQUENCES:
            return _SEQUENCES[name](_from_json(item, where) for item in of_type(inner, list, where))
        if name in _MAPPINGS:
            return _MAPPINGS[name](_pairs(inner, where))
    raise ArtifactError(f"{where}: {ascii(data)[:60]} is no container of Python's own")


def _pairs(data: Any, where: str) -> list[tuple[Any, Any]]:
    pairs = []
    for pair in of_type(data, list, where):
        if len(of_type(pair, list, where)) != 2:
            raise ArtifactError(f"{where}: a dict's entry is a key and a value")
        key = pair[0] if type(pair[0]) is int else text(pair[0], where)
        pairs.append((key, _from_json(pair[1], where)))
    if len({key for key, _ in pairs}) != len(pairs):
        raise ArtifactError(f"{where}: a key stands twice in one dict")
    return pairs
