"""A hierarchy of classes, read from their names: slashes part its levels ("Latin/character01", "fruit/apple/braeburn").

Letters: c classes, l levels.
"""

from collections.abc import Sequence

import numpy as np


def coarser_levels(class_names: Sequence[str]) -> np.ndarray | None:
    """The levels above each class, the coarsest first.

    Args:
        class_names: c names.

    Returns:
        (c, l) int64 codes: two classes share a level if their names agree that far. A class with fewer levels than the
        deepest is alone on those that it lacks. A level that all classes share, or no two, is left out. None: all are.
    """
    paths = [tuple(part for part in name.split("/") if part) for name in class_names]
    depth = max((len(path) for path in paths), default=0)
    columns = []
    for level in range(1, depth):
        heads = [
            path[:level] if level < len(path) else (*path, None, name)
            for path, name in zip(paths, class_names, strict=True)
        ]
        codes = {head: code for code, head in enumerate(dict.fromkeys(heads))}
        if 1 < len(codes) < len(paths):  # what all or none share tells nothing apart
            columns.append([codes[head] for head in heads])
    return np.array(columns, dtype=np.int64).T if columns else None
