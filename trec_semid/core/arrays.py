"""Names for numpy arrays by what their elements are; shapes stand in each function's docstring."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
"""Elements of any kind: a column whose kind only its source knows."""
Ints = np.ndarray[Any, np.dtype[np.int64]]
"""Row ids, counts, offsets and times."""
Int32s = np.ndarray[Any, np.dtype[np.int32]]
"""Codes of items and of ratings."""
AnyInts = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]
"""Integers as wide as their writer chose: codes of 16, 32 or 64 bits."""
Floats = np.ndarray[Any, np.dtype[np.float64]]
"""Measurements and statistics."""
Float32s = np.ndarray[Any, np.dtype[np.float32]]
"""Vectors and scores, as models have them."""
Flags = np.ndarray[Any, np.dtype[np.bool_]]
"""Yes or no for each element."""
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
"""Text before it is decoded."""
