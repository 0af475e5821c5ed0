"""TensorBoard: scalars in one event a step, histograms, pictures, and the run's settings with its results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class Board:
    """Writes one run's event file.

    Args:
        folder: of the event file.
        purge_step: the step from which events that an earlier process left in the folder are void.
    """

    def __init__(self, folder: Path, *, purge_step: int):
        self.writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=10)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write named scalars as one event."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._add(summary, step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Write a histogram of values."""
        self.writer.add_histogram(tag, values, step)

    def picture(self, tag: str, image: Tensor, step: int) -> None:
        """Write a picture [H, W, 3], uint8."""
        self.writer.add_image(tag, image, step, dataformats="HWC")

    def settings(self, settings: dict[str, Any], results: Iterable[str]) -> None:
        """Write settings to the HParams tab beside the scalars of those names, into this run and no other."""
        plain = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in settings.items()}
        for summary in hparams(plain, dict.fromkeys(results, 0.0)):
            self._add(summary, 0)

    def _add(self, summary: Summary, step: int) -> None:
        self.writer._get_file_writer().add_summary(summary, step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()
