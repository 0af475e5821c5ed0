"""scikit-learn's handwritten digits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from vae_cli.data.examples import Examples, Splits, numbered


def digits() -> Splits:
    """Return the 1,797 digits of scikit-learn: [N, 8, 8] uint8 levels 0 … 16, classes 0 … 9."""
    table = _digits()
    images = torch.from_numpy(table[:, :64]).to(torch.uint8).view(-1, 8, 8)
    return Splits(Examples(images, torch.from_numpy(table[:, 64]).long()), levels=17, names=numbered(10))


def _digits() -> np.ndarray:
    """Return pixels and classes [1797, 65], from scikit-learn's file: importing it takes long."""
    spec = find_spec("sklearn")
    file = Path(spec.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if spec else Path()
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return np.column_stack([x, y])
