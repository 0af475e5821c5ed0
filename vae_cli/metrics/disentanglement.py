"""What codes tell about labels and ground-truth factors; a code is the posterior mean here."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vae_cli.data import Resident
from vae_cli.metrics.elbo import evaluation_mode
from vae_cli.vae import VAE

BINS = 20  # of a code, and of a factor with more values than that
TREES = 50
BATCH = 1000


@torch.no_grad()
def codes(vae: VAE, data: Resident) -> NDArray[np.float64]:
    """Return the posterior means of every example, [N, D]."""
    with evaluation_mode(vae):
        means = [vae.encode(batch).mean.cpu() for batch in data.batches(BATCH)]
    return torch.cat(means).double().numpy()


def factors(y: torch.Tensor, reference: torch.Tensor) -> NDArray[np.int64]:
    """Return attributes [N, A] as discrete factors [N, A'], by the values that reference labels [M, A] have.

    Whole numbers are factors as they are; other values fall into 20 bins of equal counts in the reference. Factors
    that do not vary there are left out.
    """
    values, known = (t.cpu().numpy().reshape(len(t), -1) for t in (y, reference))
    columns = [_discrete(a, b) for a, b in zip(values.T, known.T, strict=True) if len(np.unique(b)) > 1]
    return np.stack(columns, axis=1) if columns else np.zeros((len(values), 0), np.int64)


def _discrete(column: NDArray, reference: NDArray) -> NDArray[np.int64]:
    unique = np.unique(reference)
    if len(unique) <= BINS:
        edges = (unique[1:] + unique[:-1]) / 2  # the nearest known value
    elif (reference == np.round(reference)).all():
        return np.round(column).astype(np.int64)
    else:
        edges = np.unique(np.quantile(reference, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.digitize(column, edges)


def mutual_information_gap(z: NDArray, v: NDArray) -> float:
    """Return MIG: the mean over factors of (I(z_j; v) − I(z_k; v)) / H(v), j and k the two most informative codes.

    The definition is Chen et al. 2018, eq. 6; I is estimated, as Locatello et al. 2019 do, from the posterior means
    in 20 bins of equal width. Codes z [N, D], factors v [N, A].
    """
    from sklearn.metrics import mutual_info_score

    binned = [np.digitize(c, np.histogram_bin_edges(c, BINS)[1:-1]) for c in z.T]
    gaps = []
    for factor in v.T:
        entropy = mutual_info_score(factor, factor)
        information = sorted((mutual_info_score(c, factor) for c in binned), reverse=True)
        second = information[1] if len(information) > 1 else 0.0
        gaps += [(information[0] - second) / entropy] if entropy > 0 else []
    return float(np.mean(gaps))


def dci(train: tuple[NDArray, NDArray], test: tuple[NDArray, NDArray]) -> dict[str, float]:
    """Return disentanglement, completeness and informativeness (Eastwood & Williams 2018) by random forests.

    Each is in [0, 1]. Informativeness is the mean accuracy on the test codes; importances are those of the forests.
    """
    from sklearn.ensemble import RandomForestClassifier

    (z, v), (z_test, v_test) = train, test
    importances, right = [], []
    for k in range(v.shape[1]):
        forest = RandomForestClassifier(TREES, max_features=None, min_samples_leaf=3, random_state=0).fit(z, v[:, k])
        importances.append(forest.feature_importances_)
        right.append(forest.score(z_test, v_test[:, k]))
    r = np.stack(importances, axis=1)  # [D, A]
    weight = r.sum(1) / r.sum()
    return {
        "dci_disentanglement": float((weight * (1.0 - _entropy(r, 1))).sum()),
        "dci_completeness": float(((r.sum(0) / r.sum()) * (1.0 - _entropy(r, 0))).sum()),
        "dci_informativeness": float(np.mean(right)),
    }


def _entropy(r: NDArray, axis: int) -> NDArray:
    """Return the entropy along an axis of what is normalised along it, in units of its largest value."""
    if r.shape[axis] == 1:
        return np.zeros(r.shape[1 - axis])
    p = r / np.maximum(r.sum(axis, keepdims=True), 1e-12)
    return -(p * np.log(np.maximum(p, 1e-12))).sum(axis) / np.log(r.shape[axis])


def linear_probe(train: tuple[NDArray, torch.Tensor], test: tuple[NDArray, torch.Tensor]) -> dict[str, float]:
    """Return how well a linear map predicts the labels from codes: accuracy for classes, mean R² for attributes."""
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (z, y), (z_test, y_test) = train, test
    if y.ndim == 1:
        fit = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(z, y.cpu().numpy())
        return {"probe_accuracy": float(fit.score(z_test, y_test.cpu().numpy()))}
    fit = LinearRegression().fit(z, y.cpu().numpy())
    return {"probe_r2": float(fit.score(z_test, y_test.cpu().numpy()))}
