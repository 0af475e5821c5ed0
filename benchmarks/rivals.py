"""The same networks trained by pythae (`pip install pythae`), for comparison. Nothing else in vae-cli imports this."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

import torch
from pythae.data.datasets import BaseDataset, DatasetOutput
from pythae.models import IWAE, VAE, VAMP, IWAEConfig, VAEConfig, VAMPConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn
from torch.utils.data import Dataset

from vae_cli.data import Resident


class Examples(Dataset):
    """Examples binarised anew whenever they are read, as ours are in training."""

    def __init__(self, data: Resident):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> DatasetOutput:
        return DatasetOutput(data=self.data.batch(slice(index, index + 1)).x[0])


class Encoder(BaseEncoder):
    """Our encoder and posterior head, in pythae's terms."""

    def __init__(self, model: nn.Module, posterior: nn.Module):
        super().__init__()
        self.model, self.posterior = model, posterior

    def forward(self, x: Tensor) -> ModelOutput:
        """Return the mean and the logarithm of the variance of q(z|x)."""
        loc, log_scale = self.posterior.head(self.model.encode(x, None)).chunk(2, dim=-1)
        return ModelOutput(embedding=loc, log_covariance=2.0 * log_scale)


class Decoder(BaseDecoder):
    """Our decoder, in pythae's terms."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> ModelOutput:
        """Return the probabilities of the pixels."""
        return ModelOutput(reconstruction=self.model.decode(z, None)[:, 0].sigmoid())


class Trainer(BaseTrainer):
    """pythae's own trainer; the best model by its validation loss is kept in memory in place of a pickle on disk."""

    def save_model(self, model: nn.Module, dir_path: str) -> None:
        """Keep the model."""
        self.best = model


SETTINGS = {
    "vae": (VAE, VAEConfig, {}),
    "vamp": (VAMP, VAMPConfig, {"number_components": 500}),
    "iwae": (IWAE, IWAEConfig, {"number_samples": 50}),
}


def train(
    kind: str, model: nn.Module, posterior: nn.Module, train: Resident, valid: Resident, **settings: float | str
) -> Tensor | None:
    """Train `model` and `posterior` in place by pythae's VAE, VAMP or IWAE; return the pseudo-inputs, if any.

    Args:
        kind: vae, vamp or iwae.
        model: of vae_cli, with Bernoulli outputs.
        posterior: `vae_cli.posterior.gaussian.Gaussian`.
        train: training examples.
        valid: validation examples.
        settings: output_dir, num_epochs, learning_rate, per_device_train_batch_size, seed.
    """
    build, configure, own = SETTINGS[kind]
    shape = tuple(train.batch(slice(0, 1)).x.shape[1:])
    config = configure(input_dim=shape, latent_dim=posterior.head.out_features // 2, reconstruction_loss="bce", **own)
    rival = build(config, encoder=Encoder(model, posterior), decoder=Decoder(model))
    trainer = Trainer(rival, Examples(train), Examples(valid), BaseTrainerConfig(**settings))
    trainer.train()
    best = trainer.best
    model.load_state_dict(best.encoder.model.state_dict())
    posterior.load_state_dict(best.encoder.posterior.state_dict())
    if kind != "vamp":
        return None
    with torch.no_grad():
        return best.pseudo_inputs(best.idle_input).view(-1, *shape)


def rate(vae: nn.Module, x: Tensor, batch: int, device: torch.device) -> float:
    """Return the examples/s of pythae's BaseTrainer over one epoch of grey levels x [N, *shape], after a short one."""
    data = BaseDataset(x.cpu().float() / 255.0, torch.zeros(len(x)))
    config = VAEConfig(input_dim=tuple(x.shape[1:]), latent_dim=20, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(vae.model, vae.latent.posterior), decoder=Decoder(vae.model))
    for part in (BaseDataset(data.data[: 20 * batch], data.labels[: 20 * batch]), data):
        with tempfile.TemporaryDirectory() as folder, silent():
            settings = {"output_dir": folder, "num_epochs": 1, "learning_rate": 1e-3, "no_cuda": device.type == "cpu"}
            trainer = Trainer(model, part, None, BaseTrainerConfig(per_device_train_batch_size=batch, **settings))
            started = time.perf_counter()
            trainer.train()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
    return len(x) / seconds


@contextmanager
def silent() -> Iterator[None]:
    """Keep pythae's lines and bars off the terminal."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)
