"""JSON patches (RFC 6902) as a Kubernetes API server applies them: the operations that canaryd uses."""

from __future__ import annotations

import copy
from typing import Any


class TestFailedError(Exception):
    """The server would answer 422."""

    __test__ = False


def patched(obj: Any, operations: list[dict[str, Any]]) -> Any:
    """A patched copy; a `test` for None holds where there is nothing."""
    obj = copy.deepcopy(obj)
    for operation in operations:
        *above, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        parent = obj
        for part in above:
            parent = parent[int(part) if isinstance(parent, list) else part]
        key: Any = last
        if isinstance(parent, list):
            key = len(parent) if last == "-" else int(last)
        match operation["op"]:
            case "test":
                there = parent.get(key) if isinstance(parent, dict) else parent[key]
                if there != operation["value"]:
                    raise TestFailedError(operation["path"])
            case "add" if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(operation["value"]))
            case "add" | "replace":
                assert operation["op"] == "add" or isinstance(parent, list) or key in parent
                parent[key] = copy.deepcopy(operation["value"])
            case "remove":
                del parent[key]
    return obj
