import inspect
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from vae_cli.schema import OPTIONS

from tests.conftest import ROOT, command, configure
from vae_cli.config.words import CONF, groups, one_line
from vae_cli.system.errors import UserError

GROUPS = groups()  # of vae-train
EVERY = [(group, path.stem) for group in GROUPS for path in sorted((Path(CONF) / group).glob("*.yaml"))]
OFFERED = {"shape", "latent_dim", "condition_dim", "outputs", "features", "levels", "classes", "attributes", "epochs"}
OFFERED |= {"encoder", "low", "high", "examples", "center", "spread"}
FILES = {name: ["data.path=."] for name in ("arrays", "images", "shards", "huggingface")}
FILES |= {"conditional": ["conditional=label"]}
FILES |= {
    name: ["data.path=."] for name in ("kingma2014_freyfaces", "higgins2017_beta", "chen2018_tc")
}  # what they need


def problem(*overrides):
    """The one line that a faulty composition ends with."""
    with pytest.raises((UserError, HydraException, OmegaConfBaseException)) as caught:
        configure(*overrides)
    return one_line(caught.value)


@pytest.mark.parametrize(("group", "option"), EVERY, ids=lambda value: value)
def test_every_option_composes_and_is_commented(group, option):
    configure(f"{group}={option}", *FILES.get(option, []))
    assert (Path(CONF) / group / f"{option}.yaml").read_text().startswith("#")


@pytest.mark.parametrize(("group", "option"), [pair for pair in EVERY if pair[0] in OPTIONS], ids=lambda value: value)
def test_yaml_schema_and_constructor_name_the_same_settings(group, option):
    part = getattr(configure(f"{group}={option}", *FILES.get(option, [])), group)
    assert part.target in OPTIONS[group]
    named = inspect.signature(get_object(part.target)).parameters
    assert set(part.arguments) - {"latent_dim"} <= set(named), "a setting that the part does not know"
    if group != "optimizer":
        assert set(named) - OFFERED - {"args", "kwargs"} <= set(part.arguments), (
            "a setting of the part that nobody can set"
        )


@pytest.mark.parametrize("target", sorted({t for group in OPTIONS for t in OPTIONS[group] if t.startswith("vae_cli.")}))
def test_a_constructors_defaults_are_those_of_its_options(target):
    """A default that a notebook gets is one that the command line gets as well."""
    group = next(group for group in OPTIONS if target in OPTIONS[group])
    options = [option for found, option in EVERY if found == group]
    parts = [getattr(configure(f"{group}={option}", *FILES.get(option, [])), group) for option in options]
    given = [part.arguments for part in parts if part.target == target]
    for name, parameter in inspect.signature(get_object(target)).parameters.items():
        if parameter.default is not parameter.empty and name not in OFFERED:
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            assert default in [settings[name] for settings in given], name


def test_every_target_of_the_schema_has_an_option():
    for group, targets in OPTIONS.items():
        found = {OmegaConf.load(path)["_target_"] for path in (Path(CONF) / group).glob("*.yaml")}
        assert found == set(targets) - {""}


WRONG = {
    ("trainer.epoch=3",): "trainer.epoch: no such setting; did you mean trainer.epochs?",
    ("+trainer.epoch=3",): "trainer.epoch: no such setting; did you mean trainer.epochs?",
    ("modle=conv",): "modle: no such setting; did you mean model?",
    ("+kl.wieght=2",): "kl.wieght: no such setting; did you mean kl.weight?",
    ("model=cnv",): "model=cnv: no such option; did you mean conv? (allowed: conv, ladder, linear, mlp, resnet)",
    ("trainer.epochs=abc",): "trainer.epochs=abc: an integer is allowed",
    ("trainer.epochs=1.5",): "trainer.epochs=1.5: an integer is allowed",
    ("trainer.compile=3",): "trainer.compile=3: true or false is allowed",
    ("trainer.checkpoint_every=2 weeks",): (
        "trainer.checkpoint_every=2 weeks: 'auto' or an integer or a text such as "
        '"2 epochs", "10 minutes" or "2 hours" is allowed'
    ),
    ("trainer.epochs=${oc.env:ABSENT}",): "trainer.epochs: Environment variable 'ABSENT' not found",
    ("trainer.epochs='3'",): (
        "trainer.epochs='3': a text; an integer is allowed (of the environment: ${oc.decode:${oc.env:NAME}})"
    ),
    ("seed=abc",): "seed=abc: an integer is allowed",
    ("seed=null",): "seed=null: an integer is allowed",
    ("optimizer.lr=nan",): "optimizer.lr=nan: a finite number is allowed",
    ("optimizer.lr=inf",): "optimizer.lr=inf: a finite number is allowed",
    ("model.latent_dim=0",): "model.latent_dim=0: at least 1 is allowed",
    ("trainer.batch_size=-1",): "trainer.batch_size=-1: at least 1 is allowed",
    ("kl.weight=-1",): "kl.weight=-1: at least 0 is allowed",
    ("kl.free_bits=-0.5",): "kl.free_bits=-0.5: at least 0 is allowed",
    ("model.hidden=[0]",): "model.hidden=[0]: at least 1 is allowed",
    ("data.valid=1.5",): "data.valid=1.5: a count (0, 1, 2, …) or a fraction below 1 is allowed",
    ("trainer.precision=fp16",): "trainer.precision=fp16: 'fp32', 'tf32' or 'bf16' is allowed",
    ("likelihood=gaussian", "likelihood.scale=share"): (
        "likelihood.scale=share: 'per_pixel', 'per_element', 'shared' or 'optimal' or a number is allowed"
    ),
    ("kl.warmup=3",): (
        "kl.warmup: has no effect with the chosen kl; it is a setting of kl=capacity, kl=cosine, kl=linear, kl=sigmoid"
    ),
    ("likelihood.scale=1",): (
        "likelihood.scale: has no effect with the chosen likelihood; "
        "it is a setting of likelihood=gaussian, likelihood=laplace"
    ),
    ("data=arrays",): "data.path: required; nothing was given",
    ("data=arrays", "data.path=/absent.npz"): (
        "data.path=/absent.npz: nothing is there; a path that exists is allowed"
    ),
    ("data.dequantize=true",): (
        "data.dequantize=true: has no effect with a likelihood over discrete values (Bernoulli); "
        "it is for continuous_bernoulli, gaussian and laplace"
    ),
    ("lr_schedule=plateau", "data.valid=0"): (
        "lr_schedule=plateau: has no effect with data.valid=0; give validation examples"
    ),
    ("trainer.early_stopping=3", "data.valid=0"): (
        "trainer.early_stopping: has no effect with data.valid=0; give validation examples"
    ),
    ("trainer.prune=3", "data.valid=0"): "trainer.prune: has no effect with data.valid=0; give validation examples",
    ("kl.weight=0", "kl=free_bits"): "kl.free_bits=0.25: has no effect with kl.weight=0; 0 is allowed",
    ("experiment=sonderby2016_ladder", "trainer.steps=10"): (
        "kl.warmup: required beside trainer.steps; it is a share of trainer.epochs"
    ),
    ("trainer.prune=0",): "trainer.prune=0: at least 1 is allowed",
    ("score=test/elbo",): "score=test/elbo: 'valid/elbo' or 'valid/log_likelihood' is allowed",
    ("score=valid/log_likelihood", "data.valid=0"): (
        "score=valid/log_likelihood: has no effect with data.valid=0; give validation examples"
    ),
    ("score=valid/log_likelihood", "trainer.log_likelihood_samples=0"): (
        "score=valid/log_likelihood: needs trainer.log_likelihood_samples; at least 1 is allowed"
    ),
    ("likelihood=gaussian", "likelihood.scale=0.1", "likelihood.min_scale=0.2"): (
        "likelihood.scale=0.1: at least likelihood.min_scale=0.2 is allowed"
    ),
    ("prior=conditional",): "prior=conditional: needs labels; with it conditional=label is allowed",
    ("prior=vamp", "posterior=flow"): (
        "prior=vamp: the densities of posterior=flow at every pseudo-input would take minutes a step; "
        "posterior=gaussian or full_gaussian is allowed"
    ),
    ("objective=iwae", "kl.free_bits=0.1"): ("kl.free_bits=0.1: has no effect with objective=iwae; 0 is allowed"),
    ("objective=beta_tc", "kl=capacity"): (
        "kl=capacity: has no effect with objective=beta_tc; any other kl is allowed"
    ),
    ("objective=factor", "model=ladder"): (
        "model=ladder: its layers depend on one another; objective=elbo, iwae or mmd is allowed"
    ),
    ("objective=beta_tc", "posterior=flow"): (
        "objective=beta_tc: needs independent dimensions in q(z|x); posterior=gaussian is allowed"
    ),
    ("objective=iwae", "trainer.compile=true"): (
        "trainer.compile=true: the hook of objective.gradient=dreg is not compiled rightly; "
        "objective.gradient=standard or stl is allowed"
    ),
    ("prior=flow", "model.latent_dim=1"): (
        "prior=flow: an autoregressive flow needs two dimensions; model.latent_dim=2 or more is allowed"
    ),
    ("prior=vamp", "objective=mmd", "kl.weight=0"): (
        "kl.weight=0: nothing would train the prior with objective=mmd; prior=standard is allowed"
    ),
    ("experiment=tomczak2018_standard", "trainer.epochs=abc"): "trainer.epochs=abc: an integer is allowed",
    ("likelihood._target_=vae_cli.likelihood.Absent",): (
        "likelihood._target_=vae_cli.likelihood.Absent: no such part of vae_cli"
    ),
}


@pytest.mark.parametrize("overrides", WRONG, ids=" ".join)
def test_each_mistake_gets_its_line(overrides):
    assert problem(*overrides) == WRONG[overrides]


def test_zero_is_a_seed_and_a_whole_number_serves_as_a_fraction():
    assert configure("seed=0").seed == 0
    assert configure("kl.weight=4").kl.weight == 4.0
    assert configure("data.valid=0").data.valid == 0


def test_free_bits_is_the_constant_schedule_with_a_quarter():
    kl = configure("kl=free_bits").kl
    assert (kl.target, kl.free_bits, kl.weight) == ("vae_cli.schedule.Constant", 0.25, 1.0)
    assert configure("kl=cyclical", "kl.free_bits=0.5").kl.free_bits == 0.5


def seconds_of_children():
    """Return the processor's time that ended processes of this one took, which others on the machine do not add to."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_config_error_comes_before_torch_and_at_once():
    """The command stops with its one line, exit code 1 and no traceback, and torch was never imported."""
    check = (
        "import sys; from vae_cli import train\n"
        "sys.argv = ['vae-train', 'hydra.run.dir=/nowhere/at/all', *sys.argv[1:]]\n"
        "try: train.main()\n"
        "finally: assert 'torch' not in sys.modules and 'torchvision' not in sys.modules\n"
    )
    for faulty, line in (("model.latnt_dim=3", "did you mean model.latent_dim?"), ("resume=/nowhere", "no run")):
        before = seconds_of_children()
        done = subprocess.run([sys.executable, "-c", check, faulty], capture_output=True, text=True, cwd=ROOT)
        assert seconds_of_children() - before < 3.0  # half a second on an idle machine
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert line in done.stderr
        assert "AssertionError" not in done.stderr


def test_a_refused_run_leaves_no_folder_behind(tmp_path):
    done = command("kl.weight=-1", f"hydra.run.dir={tmp_path}/run")
    assert done.stderr == "vae-train: error: kl.weight=-1: at least 0 is allowed\n"
    assert done.returncode == 1
    assert not (tmp_path / "run").exists()


def test_help_shows_the_everyday_commands_and_the_groups():
    done = command("--help")
    assert done.returncode == 0
    assert "vae-train model=conv data=mnist" in done.stdout
    assert all(f"{group}: " in done.stdout for group in GROUPS)


def test_experiments_and_debug_overlays_compose_with_the_command_line():
    with initialize_config_dir(CONF, version_base="1.3"):
        composed = compose("train", ["experiment=ppca", "model.latent_dim=3", "debug=fast"])
    assert composed.model["_target_"].endswith("Linear")
    assert (composed.model.latent_dim, composed.likelihood.scale, composed.trainer.steps) == (3, "shared", 2)


def test_the_epochs_of_a_run_scale_the_schedules_of_a_recipe():
    assert configure("experiment=tomczak2018_vamp").kl.warmup == 100.0
    assert configure("experiment=tomczak2018_vamp", "trainer.epochs=40").kl.warmup == 2.0
    assert configure("experiment=sonderby2016_ladder").kl.warmup == 200.0


def test_recipes_are_the_papers_settings():
    burda = configure("experiment=burda2016_iwae")
    assert (burda.objective.samples, burda.trainer.batch_size, burda.trainer.epochs) == (50, 20, 3280)
    assert (burda.model.hidden, burda.model.activation, burda.model.latent_dim) == ([200, 200], "tanh", 50)
    assert burda.model.bias_from_data
    vamp = configure("experiment=tomczak2018_vamp")
    assert (vamp.prior.components, vamp.model.latent_dim, vamp.model.hidden) == (500, 40, [300, 300])
    assert configure("experiment=chen2018_tc", "data.path=.").objective.beta == 6.0
    assert configure("experiment=higgins2017_beta", "data.path=.").kl.weight == 4.0
    assert configure("experiment=rybkin2021_sigma").likelihood.scale == "optimal"
