"""Samplers of the aggregate posterior, fitted on the training codes after training and kept in the run folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_cli.api import Trained
from vae_cli.config.words import one_line
from vae_cli.system import checkpoint, randomness
from vae_cli.system.errors import UserError

COMPONENTS = 10
CODES = 20_000  # training codes at most
STEPS = 2000  # of a flow
BATCH = 256

Sampler = tuple[Callable[[int], Tensor], Tensor]  # what gives n draws [n, D], and their mean [D]


def draw(kind: str, model: Trained, n: int, temperature: float = 1.0) -> Tensor:
    """Return n draws [n, D] of a sampler, gaussian_mixture or flow, which is fitted when it is first asked for."""
    sample, centre = _sampler(kind, model)
    return (centre + temperature * (sample(n) - centre)).float().to(model.device)


def codes(model: Trained) -> Tensor:
    """Return a draw of q(z|x) for each training example, [N, D]."""
    x, y = model.data("train")
    x = x[:CODES]
    parts = [slice(start, start + 1000) for start in range(0, len(x), 1000)]
    return torch.cat([model.encode(x[p], None if y is None else y[p]).sample().cpu() for p in parts])


def _sampler(kind: str, model: Trained) -> Sampler:
    """Return the sampler that is kept of these weights; where there is none, or a damaged one, it is fitted now."""
    fit, ready = {"gaussian_mixture": (_fit_mixture, _mixture), "flow": (_fit_flow, _flow)}[kind]
    path = Path(model.folder) / "generated" / "samplers" / f"{kind}-{model.run.step}.pt"
    if path.is_file():
        try:
            with checkpoint.fitting(path):
                return ready(checkpoint.load(path), model.latent_dim)
        except UserError as error:
            print(f"warning: {one_line(error)}; it is fitted anew", file=sys.stderr)
    with randomness.fork(0, model.device):  # what is drawn after does not depend on whether it was fitted now
        fitted = fit(codes(model))
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(fitted, path)
    return ready(fitted, model.latent_dim)


def _fit_mixture(z: Tensor) -> dict[str, Any]:
    """Fit a Gaussian mixture with full covariances to codes z [N, D], by scikit-learn."""
    from sklearn.mixture import GaussianMixture

    fitted = GaussianMixture(COMPONENTS, random_state=0, reg_covar=1e-5).fit(z.double().numpy())
    parts = {"weights": fitted.weights_, "means": fitted.means_, "covariances": fitted.covariances_}
    return {name: torch.from_numpy(part) for name, part in parts.items()}


def _mixture(kept: dict[str, Any], dimensions: int) -> Sampler:
    """Return the sampler of a mixture of K components.

    Raises:
        ValueError: it is of another shape, or no mixture.
    """
    weights, means, covariances = (kept[name].double() for name in ("weights", "means", "covariances"))
    k = len(weights)
    if means.shape != (k, dimensions) or covariances.shape != (k, dimensions, dimensions):
        raise ValueError(f"no mixture over {dimensions} dimensions")
    if not (bool((weights >= 0).all()) and float(weights.sum()) > 0 and bool(means.isfinite().all())):
        raise ValueError("weights or means that are none")
    tril = torch.linalg.cholesky(covariances)

    def sample(n: int) -> Tensor:
        which = torch.multinomial(weights, n, replacement=True)
        noise = torch.randn(n, dimensions, 1, dtype=tril.dtype)
        return means[which] + (tril[which] @ noise).squeeze(-1)

    return sample, weights @ means


def _new_flow(dimensions: int) -> torch.nn.Module:
    from zuko.flows import NSF

    return NSF(dimensions, transforms=3, hidden_features=(128, 128), passes=2)


def _fit_flow(z: Tensor) -> dict[str, Any]:
    """Fit a neural spline flow to codes z [N, D], by zuko."""
    flow, mean, std = _new_flow(z.shape[1]), z.mean(0), z.std(0, correction=0).clamp(min=1e-6)
    _fit(flow, (z - mean) / std)
    return {"flow": flow.state_dict(), "mean": mean, "std": std}


def _flow(kept: dict[str, Any], dimensions: int) -> Sampler:
    """Return the sampler of a flow.

    Raises:
        ValueError: it is of another shape.
    """
    with torch.random.fork_rng(devices=[]):
        flow = _new_flow(dimensions)
    flow.load_state_dict(kept["flow"])
    mean, std = kept["mean"], kept["std"]
    if not mean.shape == std.shape == (dimensions,):
        raise ValueError(f"no flow over {dimensions} dimensions")

    def sample(n: int) -> Tensor:
        with torch.no_grad():
            return flow().sample((n,)) * std + mean

    return sample, mean


def _fit(flow: torch.nn.Module, z: Tensor) -> None:
    """Maximise the mean log-density of codes z [N, D]."""
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1.0 - step / STEPS)
        loss = -flow().log_prob(z[torch.randint(len(z), (BATCH,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
