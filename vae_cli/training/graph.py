"""A step captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_cli.system.errors import UserError, first_line

WARM_UP = 3  # steps on a side stream before the capture, as torch asks for


def captured(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Return the graph of what a function launches, with the checks of distributions switched off.

    Raises:
        UserError: it waits for the device, which a graph cannot.
    """
    graph, checks = torch.cuda.CUDAGraph(), Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        with torch.cuda.graph(graph):
            run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(
            f"trainer.cuda_graph: the step cannot be captured, some part of it waits for the device "
            f"({first_line(error)}); trainer.cuda_graph=false is allowed"
        ) from error
    finally:
        Distribution.set_default_validate_args(checks)
    return graph


class Graph:
    """Runs a function of an index a few times, then captures it in a CUDA graph and replays the graph."""

    def __init__(self) -> None:
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream, self.ran = torch.cuda.Stream(), 0

    def __call__(self, run: Callable[[Tensor], None], index: Tensor) -> None:
        """Run what launches kernels on static memory, and returns nothing, on an index of the size that all have."""
        if self.graph is None and self.ran < WARM_UP:
            self._aside(run, index)
            return
        if self.graph is None:
            self.index = index.clone()
            self.graph = captured(partial(run, self.index))
        self.index.copy_(index)
        self.graph.replay()

    def _aside(self, run: Callable[[Tensor], None], index: Tensor) -> None:
        """Run on a stream of its own, so that lazily made workspaces are there when the capture begins."""
        self.ran += 1
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            run(index)
        torch.cuda.current_stream().wait_stream(self.stream)
