"""Samplers of the aggregate posterior, fitted on the training codes after training and kept in the run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_cli import checkpoint, randomness
from vae_cli.api import Trained

COMPONENTS = 10
CODES = 20_000  # training codes at most
STEPS = 2000  # of a flow
BATCH = 256


def draw(kind: str, model: Trained, n: int, temperature: float = 1.0) -> Tensor:
    """Return n draws [n, D] of a sampler, gaussian_mixture or flow, which is fitted when it is first asked for."""
    z, centre = {"gaussian_mixture": _gaussian_mixture, "flow": _flow}[kind](model, n)
    return (centre + temperature * (z - centre)).float().to(model.device)


def codes(model: Trained) -> Tensor:
    """Return a draw of q(z|x) for each training example, [N, D]."""
    x, y = model.data("train")
    x = x[:CODES]
    parts = [slice(start, start + 1000) for start in range(0, len(x), 1000)]
    return torch.cat([model.encode(x[p], None if y is None else y[p]).sample().cpu() for p in parts])


def _kept(model: Trained, name: str, kind: str) -> Path:
    """Return where a sampler of these weights is kept: a run that has gone on gets another."""
    folder = Path(model.folder) / "generated" / "samplers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{model.run.step}.{kind}"


def _gaussian_mixture(model: Trained, n: int) -> tuple[Tensor, Tensor]:
    """Draw from a Gaussian mixture with full covariances, by scikit-learn; return its mean as well."""
    path = _kept(model, "gaussian_mixture", "npz")
    if not path.is_file():
        from sklearn.mixture import GaussianMixture

        with randomness.fork(0, model.device):  # what is drawn after does not depend on whether it was fitted now
            z = codes(model).double().numpy()
        fitted = GaussianMixture(COMPONENTS, random_state=0, reg_covar=1e-5).fit(z)
        np.savez(path, weights=fitted.weights_, means=fitted.means_, covariances=fitted.covariances_)
    kept = np.load(path)
    weights, means, roots = (torch.from_numpy(kept[k]) for k in ("weights", "means", "covariances"))
    which = torch.multinomial(weights, n, replacement=True)
    tril = torch.linalg.cholesky(roots)[which]
    z = means[which] + (tril @ torch.randn(n, tril.shape[-1], 1, dtype=tril.dtype)).squeeze(-1)
    return z, weights @ means


def _flow(model: Trained, n: int) -> tuple[Tensor, Tensor]:
    """Draw from a neural spline flow, by zuko; return the mean of what it was fitted on as well."""
    from zuko.flows import NSF

    path = _kept(model, "flow", "pt")
    with randomness.fork(0, model.device):
        flow = NSF(model.latent_dim, transforms=3, hidden_features=(128, 128), passes=2)
    if not path.is_file():
        with randomness.fork(0, model.device):  # what is drawn after does not depend on whether it was fitted now
            z = codes(model)
            mean, std = z.mean(0), z.std(0, correction=0).clamp(min=1e-6)
            _fit(flow, (z - mean) / std)
        checkpoint.save({"flow": flow.state_dict(), "mean": mean, "std": std}, path)
    kept = checkpoint.load(path)
    flow.load_state_dict(kept["flow"])
    with torch.no_grad():
        return flow().sample((n,)) * kept["std"] + kept["mean"], kept["mean"]


def _fit(flow: torch.nn.Module, z: Tensor) -> None:
    """Maximise the mean log-density of codes z [N, D]."""
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1.0 - step / STEPS)
        loss = -flow().log_prob(z[torch.randint(len(z), (BATCH,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
