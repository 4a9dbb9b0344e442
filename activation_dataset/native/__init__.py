"""What numpy needs several passes over memory for, in one: C++, built where a compiler is at hand.

Whoever calls a function of the library has the same in numpy beside it, with the same bits: the
library is only faster. It is called without the interpreter's lock.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from typing import Any

from numpy.typing import NDArray

_INT, _FLOAT, _DOUBLE, _POINTER = (
    ctypes.c_int64,
    ctypes.c_float,
    ctypes.c_double,
    ctypes.c_void_p,
)
# Result and arguments of each function, as its C++ has them.
_SIGNATURES = {
    "AreCells": (
        _INT,
        [*[_POINTER] * 3, _INT],
    ),
    "CountVarints": (
        _INT,
        [_POINTER, _POINTER, _INT, _POINTER],
    ),
    "CrcsOfSpans": (
        None,
        [_POINTER, _POINTER, _POINTER, _POINTER, _INT, _POINTER],
    ),
    "Gather": (
        None,
        [_POINTER, _INT, _INT, _POINTER, _INT, _POINTER, _INT, _INT, _FLOAT],
    ),
    "Scatter": (
        None,
        [_POINTER, _INT, _POINTER, _INT, _POINTER],
    ),
    "ReadRows": (
        _INT,
        [_POINTER, *[_INT] * 5, _POINTER, _INT, _POINTER, _POINTER],
    ),
    "FindRecords": (
        _INT,
        [_POINTER, _POINTER, _INT, _INT, _POINTER, _POINTER],
    ),
    "ParseRecords": (
        _INT,
        [*[_POINTER] * 3, _INT, ctypes.c_char_p, *[_INT] * 3, *[_POINTER] * 2],
    ),
    "ReadKnownRecords": (
        _INT,
        [_POINTER] * 4,
    ),
    "Moments": (
        _INT,
        [_POINTER, *[_INT] * 4, _FLOAT, _FLOAT, _DOUBLE, *[_POINTER] * 3],
    ),
}


def _load() -> ctypes.CDLL | None:
    spec = find_spec("activation_dataset.native.library")
    if spec is None or spec.origin is None:
        return None
    loaded = ctypes.CDLL(spec.origin)
    if not loaded.Available():
        return None
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(loaded, name)
        except AttributeError:
            raise ImportError(
                f"{spec.origin} is of another version of this package: build it again with "
                "make setup, or pip install --editable ."
            ) from None
        function.restype, function.argtypes = result, arguments
    return loaded


library = _load()
"""None where it was not built, or the processor has not what it uses."""


def address(array: NDArray[Any]) -> int:
    """Of the first element, for an argument that is a pointer; keep the array meanwhile."""
    return array.ctypes.data
