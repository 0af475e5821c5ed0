import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.conftest import configure, train
from vae_cli import finished, metrics, parts
from vae_cli.data import Examples, Resident, Splits, decoding, vision
from vae_cli.data.batches import pixels
from vae_cli.data.examples import carve
from vae_cli.likelihood.bernoulli import Bernoulli
from vae_cli.likelihood.categorical import Categorical
from vae_cli.likelihood.discretized_logistic import DiscretizedLogistic
from vae_cli.system.errors import UserError

CPU = torch.device("cpu")


def dataset(*overrides):
    return parts.load_dataset(configure(*overrides))


def rows(examples):
    return {tuple(x.flatten().tolist()) for x in examples.x}


@pytest.mark.parametrize(("valid", "test"), [(0.1, 0.2), (30, 20), (0, 0.5), (1, 0)])
def test_splits_never_overlap_and_lose_nothing(valid, test):
    source = Splits(Examples(torch.arange(100.0)[:, None], torch.arange(100)))
    splits = carve(source, valid=valid, test=test, seed=5)
    parts = [part for part in (splits.train, splits.valid, splits.test) if part is not None]
    assert sorted(torch.cat([part.y for part in parts]).tolist()) == list(range(100))
    assert all(torch.equal(part.x[:, 0].long(), part.y) for part in parts)
    again, other = (carve(source, valid=valid, test=test, seed=seed) for seed in (5, 6))
    assert torch.equal(again.train.y, splits.train.y)
    assert valid == 1 or not torch.equal(other.train.y, splits.train.y) or len(parts) == 1


def test_a_source_keeps_its_own_splits():
    own = Splits(Examples(torch.zeros(9, 2)), Examples(torch.ones(3, 2)), Examples(torch.ones(4, 2)))
    splits = carve(own, valid=0.5, test=0.5, seed=0)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (9, 3, 4)


def test_nothing_left_to_train_on_is_refused():
    with pytest.raises(
        UserError, match=r"data\.valid=2000 and data\.test=0\.1: would leave no training examples of 1797"
    ):
        dataset("data.valid=2000")


def test_the_split_depends_on_its_own_seed_alone():
    one, other = dataset("seed=1"), dataset("seed=2")
    assert torch.equal(one.valid.x, other.valid.x)
    assert torch.equal(one.test.x, other.test.x)
    assert not torch.equal(dataset("data.seed=9").test.y, one.test.y)


@pytest.mark.parametrize("levels", [12, 17, 256, None])
def test_dynamic_binarisation_has_the_grey_levels_as_probabilities(levels):
    grey = torch.arange(levels or 256)
    x = grey.to(torch.uint8) if levels else grey / 255
    many = x.expand(20_000, -1)
    draws = pixels.bernoulli(many, levels=levels)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    p = grey / (len(grey) - 1)
    error = (p * (1 - p) / 20_000).sqrt()
    assert ((draws.mean(0) - p).abs() <= 4.5 * error).all()
    assert not torch.equal(pixels.bernoulli(many, levels=levels), draws)


def test_draws_of_different_pixels_are_independent():
    draws = pixels.bernoulli(torch.full((50_000, 8), 128, dtype=torch.uint8), levels=256)
    correlation = torch.corrcoef(draws.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / 50_000**0.5


def test_binarisation_is_what_the_likelihood_needs():
    bernoulli, gaussian = dataset(), dataset("likelihood=gaussian")
    assert (bernoulli.kind, bernoulli.spec.levels) == ("bernoulli", 2)
    assert (gaussian.kind, gaussian.spec.levels) == ("scale", 17)
    assert set(bernoulli.valid.x.unique().tolist()) == {0, 1}
    assert gaussian.valid.x.max() == 16


@pytest.mark.parametrize("binarize", ["static", "threshold", "dynamic"])
def test_validation_and_test_are_binarised_once(binarize):
    one, again = dataset(f"data.binarize={binarize}"), dataset(f"data.binarize={binarize}", "seed=7")
    assert torch.equal(one.valid.x, again.valid.x)
    assert one.spec.binary
    train = one.resident("train", CPU)
    first, second = (train.batch(slice(0, 64))[0] for _ in range(2))
    assert torch.equal(first, second) == (binarize != "dynamic")
    assert set(first.unique().tolist()) == {0.0, 1.0}


def test_dequantised_values_fill_their_cells():
    data = dataset("likelihood=gaussian", "data.dequantize=true")
    assert data.spec.dequantized == 17
    x = data.resident("train", CPU).batch(slice(0, 500)).x
    assert torch.equal((x * 17).floor().to(torch.uint8), data.train.x[:500])
    assert data.valid.x.dtype == torch.float32
    assert (x * 17).frac().mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("n", [1, 7, 10])
def test_an_evaluation_sees_each_example_once(n):
    resident = Resident(Examples(torch.arange(10.0)[:, None]), pixels.transform("scale", None), CPU)
    parts = [batch.x for batch in resident.batches(n)]
    assert torch.cat(parts).flatten().tolist() == list(range(10))


def test_the_order_is_a_permutation_of_its_own_for_every_seed_and_epoch():
    resident = Resident(Examples(torch.arange(50.0)[:, None]), pixels.transform("scale", None), CPU)
    orders = [resident.order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(order.sort().values.tolist() == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    torch.manual_seed(99)
    assert torch.equal(resident.order(1, 1), orders[-1])


def test_mnist_is_read_as_it_is(mnist_root):
    data = dataset("data=mnist", f"data.root={mnist_root}", "data.binarize=none", "likelihood=categorical")
    assert data.spec.shape == (28, 28)
    assert (data.spec.classes, data.spec.levels) == (10, 256)
    assert len(data.test) == 10_000
    assert len(data.train) + len(data.valid) in (10_000, 60_000)
    assert data.test.y[:5].tolist() == [7, 2, 1, 0, 4]


def test_a_data_set_that_is_not_there_is_an_error_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(vision, "_ask", lambda host, answered: None)
    for name in ("mnist", "fashion_mnist", "kmnist", "qmnist", "emnist", "omniglot", "cifar10", "svhn", "celeba"):
        with pytest.raises(UserError, match=r"data\.root=.*not there, and there is no network"):
            dataset(f"data={name}", f"data.root={tmp_path}")


def test_a_download_that_breaks_off_says_why(tmp_path, monkeypatch):
    def broken(root, download):
        raise RuntimeError("connection reset\nmore" if download else "not found")

    monkeypatch.setattr(vision, "_ask", lambda host, answered: answered.set())
    with pytest.raises(UserError, match=r"its download failed: connection reset$"):
        vision._fetch(str(tmp_path), broken, ["http://localhost"])


class FakeDigits:
    """What torchvision's MNIST-like classes offer, with one bright pixel at row 1, column 2."""

    def __init__(self, root, train, download, split=None):
        n = 30 if train else 10
        self.data = torch.zeros(n, 28, 28, dtype=torch.uint8)
        self.data[:, 1, 2] = 255
        self.targets = torch.arange(n) % 10 + (split == "letters")


class FakeColours:
    def __init__(self, root, download, train=None, split=None):
        n = 30 if train or split == "train" else 10
        channels_last = np.zeros((n, 32, 32, 3), dtype="uint8")
        channels_last[:, 1, 2, 0] = 255  # red
        self.data = channels_last if split is None else channels_last.transpose(0, 3, 1, 2)
        self.targets = self.labels = [k % 10 for k in range(n)]


class FakeDrawings(list):
    def __init__(self, root, background, download):
        picture = np.full((105, 105), 255, dtype="uint8")
        picture[:10, :20] = 0  # a black stroke in the corner of white paper
        count = 6 if background else 4
        super().__init__((Image.fromarray(picture), k // 2) for k in range(count))


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist", "qmnist", "emnist"])
def test_sources_like_mnist(name, tmp_path, monkeypatch):
    kinds = {"fashion_mnist": "FashionMNIST", "kmnist": "KMNIST", "qmnist": "QMNIST", "emnist": "EMNIST"}
    monkeypatch.setattr(f"torchvision.datasets.{kinds[name]}", FakeDigits)
    extra = ["data.split=letters"] if name == "emnist" else []
    data = dataset(f"data={name}", f"data.root={tmp_path}", "likelihood=gaussian", *extra)
    assert (len(data.train), len(data.valid), len(data.test)) == (27, 3, 10)
    assert data.spec.classes == (26 if extra else 10)
    assert set(data.test.y.tolist()) == set(range(10))
    bright = (2, 1) if name == "emnist" else (1, 2)  # EMNIST's files hold its letters lying on their side
    assert data.train.x[0, *bright] == 255


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("svhn", "SVHN")])
def test_sources_in_colour(name, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(f"torchvision.datasets.{kind}", FakeColours)
    data = dataset(f"data={name}", f"data.root={tmp_path}", "likelihood=gaussian")
    assert data.spec.shape == (3, 32, 32)
    assert data.train.x[0, 0, 1, 2] == 255
    assert data.train.x[0, 1:].max() == 0


def test_omniglot_is_white_on_black_and_its_two_sets_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.Omniglot", FakeDrawings)
    data = dataset("data=omniglot", f"data.root={tmp_path}", "data.test=2", "data.valid=1", "likelihood=gaussian")
    assert (data.spec.shape, data.spec.classes) == ((28, 28), 5)
    assert data.train.x[0, 0, 0] == 255
    assert data.train.x[0, -1, -1] == 0
    assert len(data.train) == 7


def test_celeba_crops_scales_and_reads_attributes(tmp_path, monkeypatch):
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    picture = np.zeros((218, 178, 3), dtype="uint8")
    picture[35:183, 15:163, 2] = 200  # what the crop keeps is blue
    Image.fromarray(picture).save(folder / "0.png")

    class FakeFaces:
        root, base_folder, filename = str(tmp_path), "celeba", ["0.png"] * 5
        attr = torch.arange(200).view(5, 40) % 2

        def __init__(self, root, split, download):
            pass

    monkeypatch.setattr("torchvision.datasets.CelebA", FakeFaces)
    data = dataset("data=celeba", f"data.root={tmp_path}", "data.size=32", "likelihood=gaussian")
    assert (data.spec.shape, data.spec.attributes, data.spec.classes) == ((3, 32, 32), 40, None)
    assert data.train.x[0, 2].min() == 200
    assert data.train.x[0, :2].max() == 0


def test_files_that_are_there_but_broken_are_not_called_absent(tmp_path, mnist_root):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x09no")
    with pytest.raises(UserError, match=r"data\.root=.*: its files cannot be read"):
        dataset("data=mnist", f"data.root={tmp_path}")


ARRAYS = {
    "table": (np.random.default_rng(0).normal(size=(40, 7)).astype("float32"), (7,), None),
    "grey": (np.random.default_rng(0).integers(0, 256, (40, 9, 6)).astype("uint8"), (9, 6), 256),
    "colour_last": (np.random.default_rng(0).integers(0, 256, (40, 9, 6, 3)).astype("uint8"), (3, 9, 6), 256),
    "colour_first": (np.random.default_rng(0).integers(0, 256, (40, 3, 9, 6)).astype("uint8"), (3, 9, 6), 256),
    "binary": (np.random.default_rng(0).integers(0, 2, (40, 9, 6)).astype("float64"), (9, 6), 2),
    "bool": (np.random.default_rng(0).integers(0, 2, (40, 5)).astype("bool"), (5,), 2),
    "counts": (np.tile(np.arange(12), (40, 1)).astype("int64"), (12,), None),
    "codes_as_bytes": (np.tile(np.arange(12), (40, 1)).astype("uint8"), (12,), 256),
    "whole_bits": (np.random.default_rng(0).integers(0, 2, (40, 5)).astype("int64"), (5,), 2),
    "whole_picture": (np.tile(np.arange(17), (40, 2, 1)).astype("int64"), (2, 17), 17),
    "whole_colours": (np.tile(np.arange(17), (40, 3, 2, 1)).astype("uint16"), (3, 2, 17), 17),
    "whole_volume": (np.tile(np.arange(17), (40, 9, 2, 1)).astype("int64"), (9, 2, 17), None),
    "whole_picture_beyond_bytes": (np.tile(np.arange(300), (40, 2, 1)).astype("int64"), (2, 300), None),
    "volume": (np.random.default_rng(0).random((40, 2, 3, 4, 5)), (2, 3, 4, 5), None),
}


@pytest.mark.parametrize("suffix", ["npz", "npy"])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_any_shape(name, suffix, tmp_path):
    x, shape, levels = ARRAYS[name]
    path = tmp_path / f"mine.{suffix}"
    np.savez(path, x=x, y=np.arange(40) % 4) if suffix == "npz" else np.save(path, x)
    data = dataset("data=arrays", f"data.path={path}", "likelihood=gaussian", "data.test=8", "data.valid=4")
    assert (data.spec.shape, data.spec.levels) == (shape, levels)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [28, 4, 8]
    assert data.spec.classes == (4 if suffix == "npz" else None)


PEOPLE = np.stack(
    [rng.integers(low, high, 400) for rng in [np.random.default_rng(1)] for low, high in ((18, 91), (0, 2), (1, 5))], 1
)  # age, sex, grade


@pytest.mark.parametrize("income", [200, 2000])  # the largest value says nothing of what the others are
@pytest.mark.parametrize("kind", ["int64", "int8", "uint16"])
def test_a_table_of_whole_numbers_is_the_table_of_the_same_floats(income, kind, tmp_path):
    x = PEOPLE if kind == "int8" else np.column_stack([PEOPLE, np.arange(400) % income])
    np.save(tmp_path / "whole.npy", x.astype(kind))
    np.save(tmp_path / "real.npy", x.astype("float64"))
    for extra in ([], ["data.standardize=true"], ["data.standardize=false"]):
        whole, real = (
            dataset("data=arrays", f"data.path={tmp_path}/{name}.npy", "likelihood=gaussian", *extra)
            for name in ("whole", "real")
        )
        assert whole.spec == real.spec
        assert whole.spec.levels is None
        assert (whole.spec.mean is None) == ("data.standardize=false" in extra)
        assert torch.equal(whole.train.x, real.train.x)
        assert (whole.taken, real.taken) == ("real values", None)


def test_a_table_of_codes_gets_no_likelihood_of_grey_levels(tmp_path):
    np.save(tmp_path / "codes.npy", np.arange(2000).reshape(400, 5) % 5)
    path = f"data.path={tmp_path}/codes.npy"
    with pytest.raises(UserError, match=r"likelihood=bernoulli: the data's values run from 0 to 4; values in \[0, 1\]"):
        dataset("data=arrays", path)
    with pytest.raises(UserError, match=r"they are no grey levels; bytes, or whole numbers 0 … 255 in pictures"):
        dataset("data=arrays", path, "likelihood=categorical")
    with pytest.raises(UserError, match=r"data\.dequantize=true: has no effect on real values"):
        dataset("data=arrays", path, "likelihood=gaussian", "data.dequantize=true")


def test_bytes_that_are_hardly_grey_levels_and_labels_that_are_hardly_classes_are_told(tmp_path):
    def notes(**content):
        np.savez(tmp_path / "x.npz", **content)
        return dataset("data=arrays", f"data.path={tmp_path}/x.npz", "likelihood=gaussian").notes

    codes, pictures = np.arange(2000).reshape(400, 5) % 5, np.arange(400 * 12).reshape(400, 3, 4) % 17
    (note,) = notes(x=codes.astype("uint8"))
    assert note.startswith("bytes are grey levels of 255, but none exceeds 4")
    assert note.endswith("they are values of their own")
    assert notes(x=pictures.astype("uint8"))[0].endswith("they are their own levels")
    assert notes(x=pictures.astype("uint8") * 15) == notes(x=codes) == notes(x=codes == 0) == ()
    (note,) = notes(x=codes, y=np.round(np.linspace(0, 900, 400)))
    assert note.startswith("labels `y` are 400 different numbers, taken for as many classes")
    assert notes(x=codes, y=np.arange(400))
    assert notes(x=codes, y=np.arange(400) % 30) == notes(x=codes, y=np.arange(400) % 20 / 1.0) == ()


def test_an_npz_with_one_array_serves_and_labels_may_be_names_or_attributes(tmp_path):
    path = tmp_path / "one.npz"
    np.savez(path, whatever=ARRAYS["table"][0])
    assert dataset("data=arrays", f"data.path={path}", "likelihood=gaussian").spec.classes is None
    np.savez(path, x=ARRAYS["table"][0], y=np.array(["cat", "dog"] * 20))
    assert dataset("data=arrays", f"data.path={path}", "likelihood=gaussian").spec.names == ("cat", "dog")
    np.savez(path, x=ARRAYS["table"][0], y=np.array([1990, 2020] * 20))
    data = dataset("data=arrays", f"data.path={path}", "likelihood=gaussian")
    assert data.spec.names == ("1990", "2020")
    assert set(data.train.y.tolist()) == {0, 1}
    np.savez(path, x=ARRAYS["table"][0], y=np.random.rand(40, 1))
    assert dataset("data=arrays", f"data.path={path}", "likelihood=gaussian").spec.attributes == 1
    np.savez(path, x=ARRAYS["table"][0], y=np.random.rand(40, 3))
    assert dataset("data=arrays", f"data.path={path}", "likelihood=gaussian").spec.attributes == 3


NAN = np.where(np.arange(40)[:, None] == 3, np.nan, ARRAYS["table"][0])
BAD_ARRAYS = {
    "labels_of_another_length": ({"x": ARRAYS["table"][0], "y": np.arange(39)}, r"40 examples in `x` but 39 labels"),
    "nan": ({"x": NAN}, r"NaN, infinity or beyond float32 in `x` \(first in example 3\)"),
    "empty": ({"x": np.zeros((0, 4))}, r"examples of shape \[0, 4\]"),
    "one_dimension": ({"x": np.arange(4.0)}, r"examples of shape \[4\]"),
    "no_x": ({"a": np.zeros((4, 4)), "b": np.zeros((4, 4))}, r"holds a, b; examples must be under `x`"),
    "text": ({"x": np.array([["a"], ["b"]])}, r"examples of type <U1; numbers are allowed"),
    "one_label": ({"x": ARRAYS["table"][0], "y": np.array(3)}, r"40 examples in `x` but 0 labels"),
    "float_labels": ({"x": ARRAYS["table"][0], "y": np.arange(40) / 7}, r"labels `y` of shape \[40\]"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_a_bad_array_is_refused_by_name(name, tmp_path):
    content, message = BAD_ARRAYS[name]
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(UserError, match=rf"data\.path=.*bad\.npz: {message}"):
        dataset("data=arrays", f"data.path={tmp_path / 'bad.npz'}", "likelihood=gaussian")


def test_files_that_are_no_arrays_are_refused(tmp_path):
    (tmp_path / "noise.npz").write_bytes(b"no array at all")
    np.savez(tmp_path / "short.npz", x=ARRAYS["table"][0])
    (tmp_path / "short.npz").write_bytes((tmp_path / "short.npz").read_bytes()[:300])
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}]), allow_pickle=True)
    reasons = {"noise.npz": "no NumPy file", "short.npz": "damaged or cut short", "pickled.npy": "never unpickled"}
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason):
            dataset("data=arrays", f"data.path={tmp_path / name}")
    with pytest.raises(UserError, match="path that exists is allowed"):
        dataset("data=arrays", f"data.path={tmp_path / 'absent.npz'}")


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for k in range(10):
            picture = rng.integers(0, 256, (12 + k, 16, 3)).astype("uint8")
            Image.fromarray(picture).save(tmp_path / name / f"{k}.png")
    return tmp_path


def test_folders_of_pictures(pictures):
    data = dataset("data=images", f"data.path={pictures}", "data.size=8", "likelihood=gaussian")
    assert (data.spec.shape, data.spec.levels, data.spec.names) == ((3, 8, 8), 256, ("cats", "dogs"))
    grey = dataset("data=images", f"data.path={pictures / 'cats'}", "data.size=[6,9]", "data.color=grayscale")
    assert (grey.spec.shape, grey.spec.classes) == ((1, 6, 9), None)


def test_pictures_of_sixteen_bits_keep_their_grey_levels(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype("uint16").reshape(8, 8)
    for k in range(3):
        Image.fromarray(ramp).save(tmp_path / f"{k}.png")
    data = dataset("data=images", f"data.path={tmp_path}", "data.size=8", "data.color=grayscale", "likelihood=gaussian")
    assert torch.equal(data.train.x[0, 0], torch.from_numpy((ramp >> 8).astype("uint8")))


def test_pictures_beside_class_folders_are_not_dropped_in_silence(pictures):
    Image.fromarray(np.zeros((9, 9, 3), dtype="uint8")).save(pictures / "stray.png")
    with pytest.raises(UserError, match="1 images stand beside the class folders cats, dogs"):
        dataset("data=images", f"data.path={pictures}")


def test_whole_floats_are_classes(tmp_path):
    np.savez(tmp_path / "floats.npz", x=ARRAYS["table"][0], y=np.arange(40) % 3 + 0.0)
    path = f"data.path={tmp_path}/floats.npz"
    assert dataset("data=arrays", path, "likelihood=gaussian").spec.names == ("0", "1", "2")


def test_a_limit_is_no_biased_sample_of_a_sorted_source(tmp_path):
    np.savez(tmp_path / "sorted.npz", x=np.random.rand(1000, 3), y=np.arange(1000) // 100)
    limited = ["data=arrays", f"data.path={tmp_path}/sorted.npz", "likelihood=gaussian", "data.limit=200"]
    assert torch.bincount(dataset(*limited).train.y, minlength=10).min() > 5


def test_a_limit_holds_for_every_split_and_limit_train_for_training_alone(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.rand(1000, 3))
    own = ["data=arrays", f"data.path={tmp_path}/x.npz", "likelihood=gaussian"]
    whole = dataset(*own).sizes
    assert dataset(*own, "data.limit=50").sizes == dict.fromkeys(whole, 50)
    assert dataset(*own, "data.limit_train=50").sizes == whole | {"train": 50}
    assert dataset(*own, "data.limit=50", "data.limit_train=20").sizes == {"train": 20, "valid": 50, "test": 50}


def test_columns_may_have_names(tmp_path):
    own = ["data=arrays", f"data.path={tmp_path}/x.npz", "likelihood=gaussian"]
    np.savez(tmp_path / "x.npz", x=np.random.randn(40, 3) * 9, features=["a", "b", "c"])
    assert dataset(*own).spec.features == ("a", "b", "c")
    np.savez(tmp_path / "x.npz", x=np.random.randn(40, 3) * 9, features=["a", "b"])
    with pytest.raises(UserError, match=r"`features` of shape \[2\].*one name for each of the columns \[3\]"):
        dataset(*own)


def test_a_broken_picture_is_named(pictures):
    (pictures / "dogs" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png cannot be read as an image"):
        dataset("data=images", f"data.path={pictures}")


def test_broken_pictures_are_skipped_where_that_is_asked_and_told_of(pictures, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("VAE_CACHE", str(tmp_path_factory.mktemp("cache")))
    (pictures / "dogs" / "broken.png").write_bytes(b"no picture")
    cut = pictures / "cats" / "3.png"
    cut.write_bytes(cut.read_bytes()[:200])
    images = ["data=images", f"data.path={pictures}", "data.size=8", "likelihood=gaussian", "data.test=0"]
    with pytest.raises(UserError, match=r"3\.png cannot be read as an image .*, and 1 others; data\.on_broken=skip"):
        dataset(*images)
    for few in (2, 200):  # with the cache and without
        monkeypatch.setattr(decoding, "FEW", few)
        found = dataset(*images, "data.on_broken=skip")
        assert torch.bincount(torch.cat([found.train.y, found.valid.y])).tolist() == [9, 10]
        (note,) = metrics.caveats(found, Categorical(levels=256))
        assert note.startswith("2 of 21 pictures cannot be read and are skipped: ")
        assert f"{cut} (" in note
    for path in (pictures / "cats").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cats.0\.png cannot be read as an image .*, and 9 others"):
        dataset("data=images", f"data.path={pictures}/cats", "data.on_broken=skip")


def test_pictures_that_are_not_read_are_told_of(pictures):
    (pictures / "dogs" / "phone.HEIC").write_bytes(b"whatever")
    (pictures / "readme.txt").write_text("no picture, and nobody takes it for one")
    found = dataset("data=images", f"data.path={pictures}", "data.size=8", "likelihood=gaussian")
    assert found.notes == ("1 pictures (.heic) are skipped: convert them to .png or .jpg to use them",)
    (pictures / "dogs" / "phone.HEIC").rename(pictures / "phone.heic")
    for name in ("cats", "dogs"):
        shutil.rmtree(pictures / name)
    with pytest.raises(UserError, match=r"no images in it .*; 1 pictures \(\.heic\) are skipped"):
        dataset("data=images", f"data.path={pictures}")


def test_a_picture_fills_its_frame_as_it_is_told(tmp_path):
    wide = np.zeros((10, 20, 3), dtype="uint8")
    wide[:, :5] = 255  # a quarter at the left is white
    Image.fromarray(wide).save(tmp_path / "wide.png")

    def framed(resize):
        return decoding.picture(tmp_path / "wide.png", (8, 8), "L", resize=resize)[0].float() / 255

    crop, pad, stretch = map(framed, ("crop", "pad", "stretch"))
    assert crop[:, 1:].max() == 0  # the white quarter is cut away
    assert pad[:2].max() == pad[6:].max() == 0
    assert pad[2:6, :2].min() > 0.8
    assert stretch[:, :2].mean() > 0.9
    assert stretch[:, 3:].max() == 0
    made = dataset("data=images", f"data.path={tmp_path}", "data.size=8", "data.resize=pad", "data.valid=0",
                   "data.test=0", "data.color=grayscale", "likelihood=gaussian").train.x  # fmt: skip
    torch.testing.assert_close(made[0, 0].float() / 255, pad)
    for other in ("data=shards", "data=huggingface"):
        with pytest.raises(UserError, match=r"data\.resize=pad: has no effect with data\.size=null"):
            dataset(other, f"data.path={tmp_path}", "data.resize=pad")


def test_a_run_that_was_stored_before_a_setting_of_its_data_goes_on_loading(pictures, tmp_path):
    settings = configure("data=images", f"data.path={pictures}").plain
    for key in ("resize", "on_broken"):
        del settings["data"][key]
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(settings))
    config = finished.settings_of(tmp_path)
    assert (config.data.resize, config.data.on_broken) == ("crop", "stop")
    finished.refuse_others(tmp_path, {"config": settings}, config)


def test_few_steps_on_pictures_are_told_of_at_the_start(pictures, tmp_path_factory):
    images = ["data=images", f"data.path={pictures}", "data.size=32", "model.hidden=[4]", "likelihood=gaussian",
              "trainer.log_likelihood_samples=0"]  # fmt: skip
    for k, (length, told) in enumerate((("trainer.epochs=2", True), ("trainer.steps=2", False))):
        folder = tmp_path_factory.mktemp(f"run{k}")
        train(folder, *images, length)
        hint = "2 steps are few for examples of [3, 32, 32]: trainer.steps=5000"
        assert (hint in (folder / "train.log").read_text()) == told


def test_the_likelihood_for_colour_pictures_is_told(pictures):
    found = dataset("data=images", f"data.path={pictures}", "data.size=8")
    assert any("take likelihood=discretized_logistic" in note for note in metrics.caveats(found, Bernoulli()))
    found = dataset("data=images", f"data.path={pictures}", "data.size=8", "likelihood=discretized_logistic")
    assert metrics.caveats(found, DiscretizedLogistic(levels=256, mixtures=1)) == []


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match="no images in it"):
        dataset("data=images", f"data.path={tmp_path}")


def test_a_picture_keeps_its_colours_and_place(tmp_path):
    picture = np.zeros((10, 20, 3), dtype="uint8")
    picture[:, 5:10, 0] = 255  # the left half of the middle square is red
    for k in range(4):
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    x = dataset("data=images", f"data.path={tmp_path}", "data.size=10", "likelihood=gaussian").train.x
    assert x[0, 0, :, :5].float().mean() == 255
    assert x[0, 0, :, 5:].max() == 0
    assert x[0, 1:].max() == 0


SUPPORT = {
    "bernoulli": r"the data's values run from .* values in \[0, 1\] are allowed",
    "continuous_bernoulli": r"the data's values run from .* values in \[0, 1\] are allowed",
    "categorical": r"they are no grey levels; bytes, or whole numbers 0 … 255 in pictures, are allowed",
    "discretized_logistic": r"they are no grey levels; bytes, or whole numbers",
}


@pytest.mark.parametrize("likelihood", SUPPORT)
def test_data_outside_the_support_are_refused(likelihood, tmp_path):
    np.save(tmp_path / "real.npy", 3.0 * ARRAYS["table"][0])
    with pytest.raises(UserError, match=SUPPORT[likelihood]):
        dataset("data=arrays", f"data.path={tmp_path / 'real.npy'}", f"likelihood={likelihood}")


def test_settings_without_effect_on_the_data_are_refused(tmp_path):
    np.save(tmp_path / "real.npy", 3.0 * ARRAYS["table"][0])
    np.save(tmp_path / "binary.npy", ARRAYS["binary"][0])
    real, binary = (f"data.path={tmp_path / name}.npy" for name in ("real", "binary"))
    with pytest.raises(UserError, match=r"data\.binarize=dynamic: values run from"):
        dataset("data=arrays", real, "likelihood=gaussian", "data.binarize=dynamic")
    with pytest.raises(UserError, match=r"data\.binarize=dynamic: has no effect, the data are binary"):
        dataset("data=arrays", binary, "data.binarize=dynamic")
    with pytest.raises(UserError, match=r"data\.dequantize=true: has no effect on real values"):
        dataset("data=arrays", real, "likelihood=gaussian", "data.dequantize=true")


def test_synthetic_examples_are_seeded_and_of_any_shape():
    for shape in ("[28,28]", "[3,8,10]", "[12]"):
        one, again = (dataset("data=synthetic", "data.n=50", f"data.shape={shape}") for _ in range(2))
        assert list(one.spec.shape) == [int(side) for side in shape.strip("[]").split(",")]
        assert torch.equal(one.train.x, again.train.x)
        assert one.train.x.float().std() > 10


def test_pictures_are_decoded_once_and_anew_when_one_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decoding, "FEW", 2)
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{k}.png" for k in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    decoded = []
    monkeypatch.setattr(decoding, "_decode_one", lambda *a, own=decoding._decode_one: (decoded.append(a), own(*a))[1])
    first = decoding.decode(paths, (8, 8), "L")
    assert len(decoded) == 5
    assert torch.equal(decoding.decode(paths, (8, 8), "L"), first)
    assert len(decoded) == 5
    decoding.decode(paths, (4, 4), "L")
    assert len(decoded) == 10
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(paths[2])
    assert not torch.equal(decoding.decode(paths, (8, 8), "L"), first)
    for kept in (tmp_path / "cache").iterdir():
        kept.write_bytes(kept.read_bytes()[:40])
    assert torch.equal(decoding.decode(paths, (8, 8), "L")[0], first[0])  # a damaged copy is made anew
    monkeypatch.setenv("VAE_CACHE", "/proc/nowhere")
    assert torch.equal(
        decoding.decode(paths, (8, 8), "L")[0], first[0]
    )  # a folder that cannot be written costs nothing
