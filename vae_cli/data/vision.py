"""torchvision's data sets, read once into memory as the bytes they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_cli.config.types import CelebACrop, Count, EmnistSplit
from vae_cli.data.examples import Examples, Splits, numbered
from vae_cli.system.errors import UserError, first_line

TIMEOUT = 20.0  # seconds to wait for a first answer from a data set's host


def _fetch(root: str, build: Callable[..., Any], hosts: list[str]) -> Any:
    """Build a torchvision data set from its files, downloading them if they are missing."""
    try:
        return build(root=root, download=False)
    except Exception as error:
        if "not found" not in str(error):  # what torchvision says of absent files
            raise UserError(
                f"data.root={root}: its files cannot be read: {first_line(error)}; damaged ones come anew once deleted"
            ) from error
    _require_network(root, hosts)
    try:
        return _with_timeouts(lambda: build(root=root, download=True))
    except Exception as error:
        raise UserError(
            f"data.root={root}: the data set is not there and its download failed: {_why(error)}"
        ) from error


def _why(error: Exception) -> str:
    """Return why a download failed: torchvision tries mirrors, whose reasons stand in later lines."""
    lines = str(error).strip().splitlines() or [""]
    reason = f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") else first_line(error)
    cut_off = "it was cut off, or its checksum is wrong; nothing of it is used, try again"
    return reason.replace("File not found or corrupted.", cut_off)


def _require_network(root: str, hosts: list[str]) -> None:
    """Raise within TIMEOUT seconds when none of the hosts answers (through a proxy, where one is set)."""
    answered, deadline = threading.Event(), time.monotonic() + TIMEOUT
    asking = [threading.Thread(target=_ask, args=(host, answered), daemon=True) for host in hosts]
    for thread in asking:
        thread.start()
    while not answered.wait(0.1) and time.monotonic() < deadline and any(thread.is_alive() for thread in asking):
        pass
    if not answered.is_set():
        raise UserError(
            f"data.root={Path(root).absolute()}: the data set is not there, and there is no network to download it "
            f"(no answer from {' or '.join(hosts)}); put its files there, or point data.root or VAE_DATA at them"
        )


def _ask(host: str, answered: threading.Event) -> None:
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(urllib.request.Request(host, method="HEAD"), timeout=TIMEOUT / 2)
    except urllib.error.HTTPError:
        answered.set()  # an answer, if a grumpy one
    except OSError:
        return
    answered.set()


def _with_timeouts(work: Callable[[], Any]) -> Any:
    import socket

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        return work()
    finally:
        socket.setdefaulttimeout(before)


def _pair(root: str, build: Callable[..., Any], hosts: list[str]) -> tuple[Any, Any]:
    return tuple(_fetch(root, lambda flag=flag, **kw: build(flag, **kw), hosts) for flag in (True, False))


def _mnist_like(root: str, name: str, hosts: list[str], classes: int = 10, **kwargs: Any) -> Splits:
    from torchvision import datasets

    kind = getattr(datasets, name)
    train, test = _pair(root, lambda flag, **kw: kind(train=flag, **kwargs, **kw), hosts)
    return Splits(
        Examples(train.data, _classes(train.targets)),
        test=Examples(test.data, _classes(test.targets)),
        levels=256,
        names=numbered(classes),
    )


def _classes(y: Any) -> Tensor:
    y = torch.as_tensor(np.asarray(y)).long()
    return y[:, 0] if y.ndim == 2 else y  # QMNIST keeps more beside the class


def mnist(*, root: str, test: None = None) -> Splits:
    """Return MNIST: [N, 28, 28] bytes."""
    return _mnist_like(root, "MNIST", ["https://ossci-datasets.s3.amazonaws.com"])


def fashion_mnist(*, root: str, test: None = None) -> Splits:
    """Return Fashion-MNIST: [N, 28, 28] bytes."""
    hosts = ["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"]
    return _mnist_like(root, "FashionMNIST", hosts)


def kmnist(*, root: str, test: None = None) -> Splits:
    """Return Kuzushiji-MNIST: [N, 28, 28] bytes."""
    return _mnist_like(root, "KMNIST", ["http://codh.rois.ac.jp"])


def qmnist(*, root: str, test: None = None) -> Splits:
    """Return QMNIST: [N, 28, 28] bytes; the test part has 60,000 digits."""
    return _mnist_like(root, "QMNIST", ["https://raw.githubusercontent.com"])


def emnist(*, root: str, split: EmnistSplit, test: None = None) -> Splits:
    """Return EMNIST: [N, 28, 28] bytes, turned upright; classes count from 0."""
    counts = {"balanced": 47, "letters": 26, "digits": 10, "mnist": 10, "bymerge": 47, "byclass": 62}
    raw = _mnist_like(root, "EMNIST", ["https://biometrics.nist.gov"], counts[split], split=split)
    first = 1 if split == "letters" else 0  # the letters' classes are stored as 1 … 26

    def upright(part: Any) -> Examples:
        return Examples(part.x.transpose(1, 2).contiguous(), part.y - first)

    return Splits(upright(raw.train), test=upright(raw.test), levels=256, names=numbered(counts[split]))


def omniglot(*, root: str, size: Count) -> Splits:
    """Return Omniglot, both sets together: [N, size, size] bytes, strokes white; classes are characters."""
    from PIL import Image
    from torchvision import datasets

    hosts = ["https://raw.githubusercontent.com"]
    parts = _pair(root, lambda flag, **kw: datasets.Omniglot(background=flag, **kw), hosts)
    images, labels, first = [], [], 0
    for part in parts:
        pairs = [part[i] for i in range(len(part))]
        images += [np.asarray(image.convert("L").resize((size, size), Image.Resampling.BOX)) for image, _ in pairs]
        labels += [first + label for _, label in pairs]
        first = max(labels) + 1
    x = 255 - torch.from_numpy(np.stack(images))
    return Splits(Examples(x, torch.tensor(labels)), levels=256, names=numbered(first))


def cifar10(*, root: str, test: None = None) -> Splits:
    """Return CIFAR-10: [N, 3, 32, 32] bytes."""
    from torchvision import datasets

    hosts = ["https://www.cs.toronto.edu"]
    train, test = _pair(root, lambda flag, **kw: datasets.CIFAR10(train=flag, **kw), hosts)

    def examples(part: Any) -> Examples:
        return Examples(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), _classes(part.targets))

    return Splits(examples(train), test=examples(test), levels=256, names=numbered(10))


def svhn(*, root: str, test: None = None) -> Splits:
    """Return SVHN: [N, 3, 32, 32] bytes."""
    from torchvision import datasets

    def build(flag: bool, **kw: Any) -> Any:
        return datasets.SVHN(split="train" if flag else "test", **kw)

    train, test = _pair(root, build, ["http://ufldl.stanford.edu"])

    def examples(part: Any) -> Examples:
        return Examples(torch.from_numpy(part.data), _classes(part.labels))

    return Splits(examples(train), test=examples(test), levels=256, names=numbered(10))


def celeba(*, root: str, size: Count, crop: CelebACrop, valid: None, test: None = None) -> Splits:
    """Return CelebA: [N, 3, size, size] bytes and 40 attributes in {0, 1}; its own three splits."""
    from torchvision import datasets

    from vae_cli.data.decoding import decode

    def examples(split: str) -> Examples:
        part = _fetch(root, lambda **kw: datasets.CelebA(split=split, **kw), ["https://drive.google.com"])
        folder = Path(part.root) / part.base_folder / "img_align_celeba"
        x = decode([folder / name for name in part.filename], (size, size), "RGB", crop=crop)
        return Examples(x, part.attr.float())

    return Splits(examples("train"), examples("valid"), examples("test"), levels=256)
