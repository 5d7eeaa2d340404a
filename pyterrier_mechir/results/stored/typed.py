"""Values of many kinds as JSON that says their types, and back, bit for bit.

What JSON has stands for itself. Anything else is an object of one entry whose name begins with a dollar sign:
``{"$tuple": [1, 2]}``; a mapping that could be taken for one is written as the pairs of a ``$dict``.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd

_MARK = "$"

_BYTES = "biufcmMSU"
"""Kinds of numpy's types whose values are their bytes."""


def encoded(value: Any) -> Any:
    """A value as JSON holds it.

    Raises:
        TypeError: it is, or has in it, something of another kind; the message is a noun that says what.
    """
    kind = type(value)
    if value is None or kind in (bool, int):
        return value
    if kind is float and isfinite(value):
        return value
    if kind is str and is_unicode(value):
        return value
    if kind is list:
        return [encoded(one) for one in value]
    if kind is dict and all(type(key) is str and is_unicode(key) for key in value) and not _marked(value):
        return {key: encoded(one) for key, one in value.items()}
    name = "scalar" if issubclass(kind, np.generic) else _NAMES.get(kind)
    if name is None:
        raise TypeError(f"a {kind.__name__}")
    return {_MARK + name: _WAYS[name][0](value)}


def decoded(value: Any) -> Any:
    """The value of what :func:`encoded` gave."""
    if isinstance(value, list):
        return [decoded(one) for one in value]
    if not isinstance(value, dict):
        return value
    name = _marked(value)
    if name in _WAYS:
        return _WAYS[name][1](value[_MARK + name])
    return {key: decoded(one) for key, one in value.items()}


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which no file of Unicode can hold."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _marked(value: dict[Any, Any]) -> str:
    """What a mapping is marked as, empty where it stands for itself."""
    (key, *others) = value or [""]
    return key.removeprefix(_MARK) if not others and key.startswith(_MARK) else ""


def _several(values: Any) -> list[Any]:
    return [encoded(one) for one in values]


def _unordered(values: Any) -> list[Any]:
    return sorted(_several(values), key=json.dumps)


def _naive(value: datetime) -> str:
    if value.tzinfo is not None:
        raise TypeError("a time with its zone among objects")
    return value.isoformat()


def _of_array(array: np.ndarray) -> list[Any]:
    if array.dtype.kind == "O":
        return ["|O", list(array.shape), _several(array.ravel().tolist())]
    if array.dtype.kind not in _BYTES or not array.dtype.itemsize:
        raise TypeError(f"an array of dtype {array.dtype}")
    return [array.dtype.str, list(array.shape), b64encode(array.tobytes()).decode()]


def _array(said: list[Any]) -> np.ndarray:
    kind, shape, content = said
    if kind != "|O":
        return np.frombuffer(b64decode(content), dtype=kind).reshape(shape).copy()
    array = np.empty(len(content), dtype=object)
    array[:] = decoded(content)
    return array.reshape(shape)


_WAYS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "str": (
        lambda text: text.encode("utf-8", "surrogatepass").hex(),
        lambda said: bytes.fromhex(said).decode("utf-8", "surrogatepass"),
    ),
    "float": (repr, float),
    "bytes": (lambda value: b64encode(value).decode(), b64decode),
    "tuple": (_several, lambda said: tuple(map(decoded, said))),
    "set": (_unordered, lambda said: set(map(decoded, said))),
    "frozenset": (_unordered, lambda said: frozenset(map(decoded, said))),
    "dict": (
        lambda value: [_several(pair) for pair in value.items()],
        lambda said: {decoded(key): decoded(one) for key, one in said},
    ),
    "date": (date.isoformat, date.fromisoformat),
    "datetime": (_naive, datetime.fromisoformat),
    "decimal": (str, Decimal),
    "array": (_of_array, _array),
    "scalar": (lambda value: _of_array(np.asarray(value)), lambda said: _array(said)[()]),
    "NA": (lambda value: None, lambda said: pd.NA),
    "NaT": (lambda value: None, lambda said: pd.NaT),
}
"""How each kind is written, and read."""

_NAMES: dict[type, str] = {
    **{kind: kind.__name__ for kind in (str, float, bytes, tuple, set, frozenset, dict, date, datetime)},
    **{Decimal: "decimal", np.ndarray: "array", type(pd.NA): "NA", type(pd.NaT): "NaT"},
}
