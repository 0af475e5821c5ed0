"""How draws of the model compare with examples, in the features of a small classifier of the data's own labels.

These are no Inception scores: they compare models of the same data, by the same seed, and nothing else.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_cli.data import Resident
from vae_cli.metrics.elbo import evaluation_mode
from vae_cli.model.layers import dense
from vae_cli.vae import VAE

WIDTH = 64  # of the features
MOST = 5000  # examples and draws at most
NEIGHBOURS = 3
STEPS = 600
BATCH = 100


def quality(vae: VAE, train: Resident, test: Resident, classes: int, *, seed: int = 0) -> dict[str, float]:
    """Return Fréchet distance, precision and recall of draws of p(x) against test examples.

    Beside the distance stands that of as many training examples which the classifier has not seen, what a perfect
    model would reach. Draws of a conditional model have the labels of the test examples.
    """
    with evaluation_mode(vae, seed):
        order = torch.randperm(len(train), device=train.device)
        seen, fresh = order[: len(train) // 2], order[len(train) // 2 :]
        net, accuracy = classifier(train, seen, test, vae.shape, classes)
        n = min(MOST, len(test), len(fresh))
        real, y, _ = test.part(n, seed).batch(slice(0, n))
        drawn = _draws(vae, n, y, mean=False)
        with torch.no_grad():
            a, b = features(net, real), features(net, drawn)
            c = features(net, train.batch(fresh[:n]).x)
    precision, recall = precision_recall(a, b)
    return {
        "classifier_frechet": frechet(a, b),
        "classifier_frechet_of_training_examples": frechet(a, c),
        "classifier_precision": precision,
        "classifier_recall": recall,
        "classifier_accuracy": accuracy,
    }


def _draws(vae: VAE, n: int, y: Tensor | None, *, mean: bool) -> Tensor:
    parts = [slice(start, min(start + BATCH, n)) for start in range(0, n, BATCH)]
    return torch.cat([vae.sample(p.stop - p.start, None if y is None else y[p], mean=mean) for p in parts])


class Classifier(nn.Module):
    """Two strided convolutions for pictures, a dense layer for the rest; then features, then classes."""

    def __init__(self, shape: tuple[int, ...], classes: int):
        super().__init__()
        channels = shape[0] if len(shape) == 3 else 1
        if len(shape) in (2, 3) and min(shape[-2:]) >= 8:
            self.picture: tuple[int, ...] = (channels, *shape[-2:])
            convolutions = [nn.Conv2d(channels, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU()]
            flat = 32 * prod((side + 3) // 4 for side in shape[-2:])
        else:
            self.picture, convolutions, flat = (prod(shape),), [nn.Linear(prod(shape), 128), nn.ReLU()], 128
        self.body = nn.Sequential(*convolutions, nn.Flatten(), dense([flat, WIDTH], "relu"))
        self.head = nn.Linear(WIDTH, classes)

    def features(self, x: Tensor) -> Tensor:
        """Map x [B, *shape] to features [B, 64]."""
        return self.body(x.view(-1, *self.picture))


def classifier(
    train: Resident, seen: Tensor, test: Resident, shape: tuple[int, ...], classes: int
) -> tuple[Classifier, float]:
    """Train a classifier on the seen training examples for a fixed number of steps; return it with its accuracy."""
    x = train.batch(slice(0, 1)).x
    net = Classifier(shape, classes).to(x.device)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(STEPS):
        index = seen[torch.randint(len(seen), (BATCH,), device=x.device)]
        x, y, _ = train.batch(index)
        assert y is not None
        optimizer.param_groups[0]["lr"] = 2e-3 * (1.0 - step / STEPS)
        optimizer.zero_grad()
        F.cross_entropy(net.head(net.features(x)), y).backward()
        optimizer.step()
    with torch.no_grad():
        right = sum(int((net.head(net.features(x)).argmax(1) == y).sum()) for x, y, _ in test.batches(1000))
    return net.eval(), right / len(test)


def features(net: Classifier, x: Tensor) -> Tensor:
    """Return the features of examples x [N, *shape], [N, 64] in float64 on the CPU."""
    return torch.cat([net.features(part) for part in x.split(1000)]).cpu().double()


def frechet(a: Tensor, b: Tensor) -> float:
    """Return |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^½) of features [N, F] (Heusel et al. 2017, eq. 6)."""
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0.0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0.0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2.0 * cross)


def precision_recall(real: Tensor, drawn: Tensor) -> tuple[float, float]:
    """Return the share of draws within the examples' neighbourhoods, and of examples within the draws' (k = 3).

    A neighbourhood is the ball around a point to its third neighbour among its own kind (Kynkäänniemi et al. 2019).
    """
    return _covered(drawn, real), _covered(real, drawn)


def _covered(points: Tensor, by: Tensor) -> float:
    k = min(NEIGHBOURS, len(by) - 1)
    radii = torch.cat([torch.cdist(part, by).kthvalue(k + 1, dim=1).values for part in by.split(1000)])
    inside = [(torch.cdist(part, by) <= radii).any(1) for part in points.split(1000)]
    return float(torch.cat(inside).double().mean())


def inception_fid(vae: VAE, test: Resident, *, seed: int = 0) -> dict[str, float]:
    """Return Inception FID by torch-fidelity between draws' means and test pictures, for those who have its weights."""
    import torch_fidelity

    with evaluation_mode(vae, seed):
        n = min(10_000, len(test))
        real, y, _ = test.part(n, seed).batch(slice(0, n))
        drawn = _draws(vae, n, y, mean=True)
    found = torch_fidelity.calculate_metrics(
        input1=Pictures(drawn), input2=Pictures(real), fid=True, cuda=real.is_cuda, verbose=False
    )
    return {"inception_fid": float(found["frechet_inception_distance"])}


class Pictures(torch.utils.data.Dataset):
    """Examples [N, H, W] or [N, C, H, W] in [0, 1] as uint8 pictures [3, H, W]."""

    def __init__(self, x: Tensor):
        x = x.unsqueeze(1) if x.ndim == 3 else x
        self.x = x.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).cpu().expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index]
