"""Arrays in Ray's shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from actors.messages import StorageFull


def put_arrays(arrays: Mapping[str, Any]) -> Any:
    """A reference to arrays that readers share.

    Where Ray may spill to the disk, or map a file there, it waits for that instead of failing.

    Raises:
        StorageFull: If there is room neither in memory nor on the disk behind it.
    """
    try:
        return ray.put(dict(arrays))
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise StorageFull(f"shared memory: {error}") from error
