"""The Python interface: distributions that keep their word, training from a notebook, runs as data frames."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributions import kl_divergence

import vae_cli
from tests.conftest import configure
from vae_cli import finished, parts
from vae_cli.api import Trained
from vae_cli.data import Spec
from vae_cli.system.errors import UserError

FLAT = Spec(shape=(3, 4), levels=5, low=0.0, high=1.0, names=("a", "b"))
BINARY = Spec(shape=(3, 4), levels=2, low=0.0, high=1.0)
OWN = Spec(shape=(3,), levels=None, low=-3.0, high=3.0, mean=(5.0, -2.0, 100.0), std=(2.0, 0.5, 30.0))
GRID = Spec(shape=(8, 8), levels=2, low=0.0, high=1.0)

LIKELIHOODS = {
    "bernoulli": (BINARY, "likelihood=bernoulli"),
    "continuous_bernoulli": (FLAT, "likelihood=continuous_bernoulli"),
    "categorical": (FLAT, "likelihood=categorical"),
    "discretized_logistic": (FLAT, "likelihood=discretized_logistic"),
    "discretized_logistic, mixture": (FLAT, "likelihood=discretized_logistic", "likelihood.mixtures=3"),
    "autoregressive": (BINARY, "likelihood=autoregressive", "likelihood.hidden=4", "likelihood.layers=1"),
    **{
        f"{name}, {scale}, {kind}": (spec, f"likelihood={name}", f"likelihood.scale={scale}")
        for name in ("gaussian", "laplace")
        for scale in ("per_pixel", "per_element", "shared", "optimal", "0.3")
        for kind, spec in (("grey levels", FLAT), ("standardised", OWN))
    },
}
POSTERIORS = {
    "gaussian": (BINARY, "posterior=gaussian"),
    "full_gaussian": (BINARY, "posterior=full_gaussian"),
    "flow": (BINARY, "posterior=flow", "posterior.hidden=[8]", "posterior.context=4"),
    "categorical": (BINARY, "latent=codes", "latent.classes=4"),
    "spatial": (GRID, "latent=spatial", "latent.channels=2", "model=conv", "model.channels=[4,8]"),
    "ladder": (BINARY, "latent=ladder", "latent.below=[4]", "latent.hidden=[8]"),
}
PRIORS = {
    "standard": (BINARY, "prior=standard"),
    "mixture": (BINARY, "prior=mixture", "prior.components=3"),
    "vamp": (BINARY, "prior=vamp", "prior.components=3"),
    "vamp, full_gaussian": (BINARY, "prior=vamp", "prior.components=3", "posterior=full_gaussian"),
    "flow": (BINARY, "prior=flow", "prior.hidden=[8]", "prior.transforms=2"),
    "categorical": (BINARY, "latent=codes", "latent.classes=4", "prior.learned=true"),
    "conditional": (FLAT, "likelihood=categorical", "prior=conditional", "conditional=label"),
    "ladder": (BINARY, "latent=ladder", "latent.below=[4]", "latent.hidden=[8]"),
}
ESTIMATED = {"flow": "variance", "ladder": "variance"}  # whose mean is an estimate, and what they have not


def built(spec, *overrides):
    """The API of a small model with random weights away from their start."""
    torch.manual_seed(5)
    small = [] if "model=conv" in overrides else ["model.hidden=[16]"]
    config = configure("model.latent_dim=3", *small, *overrides)
    vae = parts.build(config, spec).eval()
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return Trained(finished.Restored(config, vae.requires_grad_(False), spec, {}, 0), Path())


def distribution(kind, name):
    spec, *overrides = {"likelihood": LIKELIHOODS, "posterior": POSTERIORS, "prior": PRIORS}[kind][name]
    model = built(spec, *overrides)
    y = [0, 1] if model.conditional else None
    if kind == "prior":
        return model.prior(y)
    if kind == "likelihood":
        return model.decode(torch.randn(2, *model.code_shape), y)
    return model.encode(spec.restore(torch.rand(2, *spec.shape)).round(), y)


CASES = [("likelihood", name) for name in LIKELIHOODS]
CASES += [("posterior", name) for name in POSTERIORS] + [("prior", name) for name in PRIORS]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_distribution_keeps_its_word(case):
    """Moments and entropy are those of draws, or a sentence says how to estimate them; draws fit the density."""
    d, n = distribution(*case), 3000
    x = d.sample((n,))
    assert x.shape == (n, *d.batch_shape, *d.event_shape)
    log_p = d.log_prob(x)
    assert log_p.shape == (n, *d.batch_shape)
    assert log_p.isfinite().all()
    given = missing(d)
    estimated = case[1] in ESTIMATED and case[0] != "likelihood"
    if case == ("likelihood", "autoregressive") or estimated:
        assert {"variance", "stddev", "entropy"} <= given
    elif case[0] == "likelihood" or case[1] in ("gaussian", "full_gaussian", "categorical", "spatial", "standard"):
        assert not given
    if "mean" not in given and not estimated:
        error = x.std(0) / n**0.5
        assert ((x.mean(0) - d.mean).abs() <= 5 * error + 1e-4 * d.mean.abs() + 1e-5).all()
    if "variance" not in given:
        square = (x - d.mean).square()
        assert ((square.mean(0) - d.variance).abs() <= 6 * square.std(0) / n**0.5 + 1e-3 * d.variance + 1e-6).all()
        torch.testing.assert_close(d.stddev.square(), d.variance)
    if "entropy" not in given:
        assert ((-log_p.mean(0) - d.entropy()).abs() <= 5 * log_p.std(0) / n**0.5 + 1e-3).all()
    if "mode" not in given:
        assert (d.log_prob(d.mode) >= log_p.amax(0) - 1e-3).all()


def missing(d):
    """What a distribution has not; each with a sentence that says what to do instead."""
    found, sentences = set(), []
    for name in ("mean", "mode", "variance", "stddev", "entropy"):
        try:
            value = getattr(d, name)
            value = value() if name == "entropy" else value
        except NotImplementedError as error:
            sentences.append(str(error))
            found.add(name)
        else:
            assert value.shape == (d.batch_shape if name == "entropy" else d.batch_shape + d.event_shape)
    assert all("in closed form; an estimate: " in sentence for sentence in sentences)
    return found


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_distribution_expands(case):
    d = distribution(*case)
    wide = d.expand((4, 3, *d.batch_shape))
    assert (wide.batch_shape, wide.event_shape) == ((4, 3, *d.batch_shape), d.event_shape)
    x = wide.sample((2,))
    assert x.shape == (2, 4, 3, *d.batch_shape, *d.event_shape)
    assert not torch.equal(x[0, 0], x[0, 1])  # draws of their own
    assert not torch.equal(x[0, :, 0], x[0, :, 1])
    torch.testing.assert_close(wide.log_prob(x), d.log_prob(x), atol=1e-3, rtol=1e-4)
    assert wide.log_prob(d.sample()).shape == wide.batch_shape
    for name in {"mean", "variance", "stddev", "mode"} - missing(d):
        if case[1] != "flow" or case[0] == "likelihood":  # its mean is drawn
            torch.testing.assert_close(getattr(wide, name), getattr(d, name).expand(wide.mean.shape))
    if "entropy" not in missing(d):
        torch.testing.assert_close(wide.entropy(), d.entropy().expand(wide.batch_shape))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_draws_have_gradients_or_a_sentence(case):
    kind, name = case
    spec, *overrides = {"likelihood": LIKELIHOODS, "posterior": POSTERIORS, "prior": PRIORS}[kind][name]
    vae = built(spec, *overrides).vae.requires_grad_(True)
    x, y = torch.rand(2, *spec.shape).round(), torch.tensor([0, 1])
    z = torch.randn(2, vae.latent_dim, requires_grad=True)
    batch = vae_cli.api.Batch(x, y if vae.conditional else None)
    d = {"likelihood": lambda: vae.decode(z, batch.y), "posterior": lambda: vae.encode(batch),
         "prior": lambda: vae.prior(batch.y)}[kind]()  # fmt: skip
    if not d.has_rsample:
        with pytest.raises(NotImplementedError):
            d.rsample()
        assert not d.sample().requires_grad
        return
    drawn = d.rsample((3,))
    assert drawn.shape == d.sample((3,)).shape
    assert not d.sample().requires_grad
    if kind != "prior" or name != "standard":  # which has nothing to learn
        (drawn * torch.randn_like(drawn)).sum().backward()
        used = [p.grad for p in (z, *vae.parameters()) if p.grad is not None]
        assert used
        assert all(each.isfinite().all() for each in used)


def test_divergences_of_what_the_api_gives_are_those_of_the_elbo():
    for name in ("gaussian", "full_gaussian", "categorical", "spatial"):
        spec, *overrides = POSTERIORS[name]
        model = built(spec, *overrides)
        x = torch.rand(4, *spec.shape).round()
        kl = model.vae(model.inputs.batch(x, None)).kl.sum(-1)
        torch.testing.assert_close(kl_divergence(model.encode(x), model.prior()), kl)


def test_a_single_code_is_decoded():
    model = built(*LIKELIHOODS["gaussian, shared, standardised"])
    z = torch.randn(3)
    p = model.decode(z)
    assert (p.batch_shape, p.event_shape) == ((), (3,))
    torch.testing.assert_close(p.mean, model.decode(z[None]).mean[0])


SETTINGS = [
    "data=digits",
    "trainer.steps=12",
    "trainer.log_every=4",
    "model.hidden=[16]",
    "trainer.log_likelihood_samples=2",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of two runs that were trained from Python."""
    root = tmp_path_factory.mktemp("runs")
    vae_cli.train(*SETTINGS, folder=root / "a" / "first")
    vae_cli.train(*SETTINGS, "kl.weight=2", "model=conv", "model.channels=[4]", folder=root / "second")
    return root


def test_training_from_python_returns_the_finished_run(root, tmp_path):
    model = vae_cli.train(*SETTINGS, folder=tmp_path / "run", device="cpu")
    assert type(model) is Trained
    again = vae_cli.load(tmp_path / "run", device="cpu")
    x, _ = model.data()
    assert torch.equal(model.encode(x).mean, again.encode(x).mean)
    assert torch.equal(model.encode(x).mean, vae_cli.load(root / "a" / "first", device="cpu").encode(x).mean)
    assert (tmp_path / "run" / "report.html").is_file()
    assert "model.hidden=[16]" in (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
    with pytest.raises(UserError, match=r"folder=.*: holds a run already; .* another folder is allowed"):
        vae_cli.train(*SETTINGS, folder=tmp_path / "run")


def test_a_run_without_a_folder_gets_one_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [vae_cli.train(*SETTINGS, "trainer.steps=1").folder for _ in range(2)]
    assert len(set(folders)) == 2
    assert all(folder.parts[0] == "outputs" and (folder / "summary.json").is_file() for folder in folders)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.latent_dim=0", "model.latent_dim=0: at least 1 is allowed"),
        ("model=resnets", "model=resnets: no such option"),
        ("mode.latent_dim=2", "mode.latent_dim: no such setting"),
        ("hydra.run.dir=x", "hydra.run.dir=x: has no effect here; folder=FOLDER is allowed"),
        ("resume=x", "resume=x: has no effect here"),
        ("sweep=seeds", "sweep=seeds: has no effect here"),
        ("-m", "-m: has no effect here"),
        ("seed=1,2", "seed=1,2: several values|seed: "),
    ],
)
def test_a_wrong_setting_is_one_line_and_leaves_nothing(tmp_path, override, line):
    with pytest.raises(UserError, match=line) as told:
        vae_cli.train(override, folder=tmp_path / "run")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_history_and_runs_are_data_frames(root):
    pytest.importorskip("pandas")
    model = vae_cli.load(root / "second", device="cpu")
    history = vae_cli.history(model)
    assert history["train/loss"].notna().sum() == 3
    assert history["step"].max() == 12
    assert history.equals(vae_cli.history(root / "second"))
    runs = vae_cli.runs(root).set_index("run")
    assert len(runs) == 2
    second = runs.loc[str(root / "second")]
    assert second["kl.weight"] == 2.0
    assert second["model"] == "conv"
    assert second["test/elbo"] == pytest.approx(float(model.elbo(*model.data(), samples=20).mean()), abs=1.0)
    with pytest.raises(UserError, match=r"no finished run in it"):
        vae_cli.runs(root / "a" / "first" / "checkpoints")
    with pytest.raises(UserError, match=r"no run there"):
        vae_cli.history(root)


@pytest.mark.parametrize("name", ["history", "runs"])
def test_without_pandas_one_line_says_how_to_get_it(root, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=rf"^vae_cli\.{name}: needs pandas; pip install pandas brings it$"):
        getattr(vae_cli, name)(root)


def test_what_is_imported_comes_late():
    code = """
import sys, vae_cli
assert 'torch' not in sys.modules and 'pandas' not in sys.modules
vae_cli.load
assert 'torch' in sys.modules and 'vae_cli.training' not in sys.modules and 'pandas' not in sys.modules
train = vae_cli.train
assert 'vae_cli.training' not in sys.modules
import vae_cli.train
for call in (train, vae_cli.train):
    try:
        call('model.latent_dim=0')
    except vae_cli.system.errors.UserError as error:
        assert str(error).startswith('model.latent_dim=0'), error
    else:
        raise AssertionError
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(vae_cli.__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    assert all(callable(getattr(vae_cli, name)) for name in vae_cli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        vae_cli.lod  # noqa: B018
