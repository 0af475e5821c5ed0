"""What a person gives a trained model: examples, labels and codes, checked and as the model sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vae_cli.batch import Batch
from vae_cli.data.dataset import Spec
from vae_cli.system.errors import suggest

SLACK = 1e-4  # how far beyond the data's range a value may lie


class Inputs:
    """Examples, labels and codes as tensors on the model's device.

    Args:
        spec: what the data are.
        code: shape of one code z.
        conditional: whether the model needs labels.
        device: of the model.
    """

    def __init__(self, spec: Spec, code: Sequence[int], *, conditional: bool, device: torch.device):
        self.spec, self.code, self.conditional, self.device = spec, tuple(code), conditional, device

    @property
    def bounded(self) -> bool:
        """Whether the data's own values are in [0, 1]."""
        return self.spec.mean is None and self.spec.unit

    def codes(self, z: ArrayLike | Tensor) -> Tensor:
        """Return codes as flat ones [..., D], of flat ones or of codes in their own shape [..., *code].

        Raises:
            ValueError: they have another shape.
        """
        z, n, size = self.tensor(z), len(self.code), math.prod(self.code)
        if n > 1 and tuple(z.shape[-n:]) == self.code:
            return z.flatten(-n)
        if z.ndim == 0 or z.shape[-1] != size:
            own = f" or [..., {', '.join(map(str, self.code))}]" if n > 1 else ""
            raise ValueError(f"z has shape {list(z.shape)}; [..., {size}]{own} is allowed")
        return z

    def batch(self, x: ArrayLike | Tensor, y: Any) -> Batch:
        """Return examples as the model sees them; NaN is a missing value where it knows such."""
        x = self.x(x)
        y = self.labels(y, len(x))
        return Batch(x.nan_to_num(0.0), y, ~x.isnan()) if self.spec.missing else Batch(x, y)

    def tensor(self, value: ArrayLike | Tensor) -> Tensor:
        """Return numbers as a float32 tensor on the model's device."""
        return torch.as_tensor(value).to(self.device, torch.float32)

    def x(self, x: ArrayLike | Tensor) -> Tensor:
        """Check examples against what the model knows, and scale them as it saw them.

        Raises:
            ValueError: another shape, or values beyond the range of the data.
        """
        given, shape = self.tensor(x), self.spec.shape
        finite = ~given.isinf() if self.spec.missing else given.isfinite()
        if len(given) == 0 or not bool(finite.all()):
            told = "infinity" if self.spec.missing else "NaN or infinity (this model knows no missing values)"
            raise ValueError(f"x is empty, or holds {told}")
        if given.shape[1:] != shape:
            one = "; of one example give x[None]" if given.shape == shape else ""
            raise ValueError(f"x has shape {list(given.shape)}; [B, {', '.join(map(str, shape))}] is allowed{one}")
        low, high = float(given.nan_to_num(0.0).min()), float(given.nan_to_num(0.0).max())
        if self.bounded and (low < -SLACK or high > 1.0 + SLACK):
            whole = low >= 0.0 and high <= 255.0 and bool((given == given.round()).all())
            hint = "; divide by 255" if whole else ""
            raise ValueError(f"x runs from {low:g} to {high:g}; this model knows values in [0, 1]{hint}")
        if self.spec.binary and bool(((given > SLACK) & (given < 1.0 - SLACK)).any()):
            raise ValueError("x holds grey values; this model knows 0 and 1 alone: binarise it")
        return self.spec.standardize(given)

    def labels(self, y: Any, n: int) -> Tensor | None:
        """Return labels [n], of one or of each.

        Raises:
            ValueError: a conditional model was given none, or labels it does not know.
        """
        if not self.conditional:
            return None
        if y is None:
            raise ValueError("this model is conditional: give labels y, one for all or one each")
        if self.spec.classes is not None:
            return self._classes(torch.as_tensor(self._numbered(y), device=self.device), n, self.spec.classes)
        labels, wanted = self.tensor(y), self.spec.attributes
        if labels.shape not in ((wanted,), (n, wanted)):
            raise ValueError(f"y has shape {list(labels.shape)}; attributes [{wanted}] or [{n}, {wanted}] are allowed")
        return labels.expand(n, -1)

    def _numbered(self, y: Any) -> Any:
        """Return classes by number where they were given by name, one or several; numbers stay as they are.

        Raises:
            ValueError: there is no such class.
        """
        if isinstance(y, str):
            return class_number(self.spec.names or (), y, "y")
        several = y.tolist() if isinstance(y, np.ndarray) else y
        return [self._numbered(each) for each in several] if isinstance(several, (list, tuple)) else several

    def count(self, y: Any) -> int:
        """Return how many labels y holds."""
        shape, dimensions = np.shape(y), 0 if self.spec.classes is not None else 1
        return shape[0] if len(shape) > dimensions else 1

    def _classes(self, labels: Tensor, n: int, classes: int) -> Tensor:
        allowed = f"one class, or {n}, from 0 to {classes - 1} are allowed"
        if labels.shape not in ((), (n,)) or bool((labels != labels.round()).any()):
            raise ValueError(f"y has shape {list(labels.shape)} or fractions; {allowed}")
        labels = labels.long().expand(n)
        if bool(((labels < 0) | (labels >= classes)).any()):
            raise ValueError(f"y={labels.tolist()[:9]}: {allowed}")
        return labels


def class_number(names: Sequence[str], name: str, given: str) -> int:
    """Return the number of a class, of the run's names in order; `given` is what an error begins with.

    Raises:
        ValueError: there is no such class.
    """
    if name in names:
        return names.index(name)
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    raise ValueError(f"{given}: the run knows no class {name}{suggest(name, names)}; {shown} are allowed")
