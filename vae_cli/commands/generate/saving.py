"""Arrays that a task leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vae_cli.system.disk import whole


def save(path: Path, **arrays: Any) -> Path:
    """Write tensors and arrays as one .npz, and return its path."""
    plain: dict[str, Any] = {k: v.cpu().numpy() if isinstance(v, Tensor) else np.asarray(v) for k, v in arrays.items()}
    with whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **plain)
    return path
