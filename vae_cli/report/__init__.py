"""What a person sees of a run: console, TensorBoard, metrics.jsonl, figures. The only place that writes for people."""

from vae_cli.report.reporter import Reporter
from vae_cli.report.silent import Silent

__all__ = ["Reporter", "Silent"]
