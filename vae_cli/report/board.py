"""TensorBoard: scalars in one event a step, histograms, pictures, and the run's settings with its results."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from vae_cli.report.events import Writer

SPRITE = 2048  # pixels on each side of the Projector's sprite, at most


class Board:
    """Writes one run's event file.

    Args:
        folder: of the event file.
        purge_step: the step from which events that an earlier process left in the folder are void.
    """

    def __init__(self, folder: Path, *, purge_step: int):
        self.writer = Writer(folder, purge_step=purge_step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write named scalars as one event."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._add(summary, step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Write a histogram of values."""
        self.writer.add_histogram(tag, values, step)

    def picture(self, tag: str, image: Tensor, step: int) -> None:
        """Write a picture [H, W, 3], uint8, lightly compressed: training waits for it."""
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "PNG", compress_level=1)
        height, width = image.shape[:2]
        picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
        self._add(Summary(value=[Summary.Value(tag=tag, image=picture)]), step)

    @staticmethod
    def sprite_side(n: int) -> int:
        """Return how many pixels a side the Projector's picture of each of n codes may have."""
        return max(1, int(SPRITE // math.ceil(math.sqrt(n))))

    def codes(self, codes: Tensor, labels: Sequence[str] | None, images: Tensor | None, step: int) -> None:
        """Write codes [N, D] to the Projector tab, with the names of their labels and pictures [N, 3, H, W] in [0, 1].

        Codes that an earlier process left there are replaced.
        """
        for old in Path(self.writer.log_dir).glob("[0-9]*/codes"):
            shutil.rmtree(old)
        named = None if labels is None else list(labels)
        self.writer.add_embedding(codes, named, images, step, tag="codes")

    def settings(self, settings: dict[str, Any], results: Iterable[str]) -> None:
        """Write settings and the scalars of those names to the HParams tab, for this run only."""
        plain = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in settings.items()}
        for summary in hparams(plain, dict.fromkeys(results, 0.0)):
            self._add(summary, 0)

    def _add(self, summary: Summary, step: int) -> None:
        self.writer.events.add_summary(summary, step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()
