import inspect
import resource
import subprocess
import sys
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf.errors import OmegaConfBaseException

from tests.conftest import ROOT, command, configure
from vae_cli.config.check import schema, setting_names
from vae_cli.config.options import GROUPS as PARTS
from vae_cli.config.options import OFFERED, targets
from vae_cli.config.signatures import forget
from vae_cli.config.words import CONF, groups, one_line
from vae_cli.system.errors import UserError

GROUPS = groups()  # of vae-train
EVERY = [(group, path.stem) for group in GROUPS for path in sorted((Path(CONF) / group).glob("*.yaml"))]
TARGETS = sorted((group, target) for group in (*PARTS, "task") for target in targets(group))
FILES = {name: ["data.path=."] for name in ("arrays", "images", "shards", "huggingface")}
FILES |= {"conditional": ["conditional=label"], "spatial": ["model=conv"], "categorical": ["latent=codes"]}
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


@pytest.mark.parametrize(("group", "option"), [pair for pair in EVERY if pair[0] in PARTS], ids=lambda value: value)
def test_yaml_and_signature_name_the_same_settings(group, option):
    part = getattr(configure(f"{group}={option}", *FILES.get(option, [])), group)
    fields = schema(group, part.target).model_fields
    absent = set(setting_names(group, part.target)) - set(part.settings)
    assert set(part.settings) <= set(fields)
    assert all(fields[name].annotation is NoneType for name in absent), "a setting that the YAML lacks"
    named = set(inspect.signature(get_object(part.target)).parameters) - {"args", "kwargs"}
    assert named - absent <= set(part.settings) | set(OFFERED[group]), "a setting of the part that nobody can set"


@pytest.mark.parametrize(("group", "target"), TARGETS, ids=lambda value: value)
def test_a_default_stands_in_the_yaml_alone(group, target):
    if target.startswith("vae_cli."):
        parameters = inspect.signature(get_object(target)).parameters
        with_default = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
        assert set(with_default.items()) <= {("test", None)}, "`test` of a source that has its own is no setting"


@pytest.mark.parametrize(("group", "target"), TARGETS, ids=lambda value: value)
def test_every_setting_of_ours_has_a_type(group, target):
    if target.startswith("vae_cli."):
        fields = schema(group, target).model_fields
        assert not [name for name, field in fields.items() if field.annotation is Any]
        assert schema(group, target).model_config["extra"] == "forbid"


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
        "data.dequantize=true: has no effect with likelihood=bernoulli, a mass over discrete values; "
        "likelihood=continuous_bernoulli, gaussian or laplace is allowed"
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
    ("prior=conditional",): "prior=conditional: needs labels; conditional=label is allowed",
    ("prior=vamp", "posterior=flow"): (
        "prior=vamp: the densities of posterior=flow at every pseudo-input would take minutes a step; "
        "posterior=full_gaussian or gaussian is allowed"
    ),
    ("objective=iwae", "kl.free_bits=0.1"): ("kl.free_bits=0.1: has no effect with objective=iwae; 0 is allowed"),
    ("objective=beta_tc", "kl=capacity"): (
        "kl=capacity: has no effect with objective=beta_tc; any other kl is allowed"
    ),
    ("objective=factor", "model=ladder"): (
        "objective=factor: the layers of latent=ladder depend on one another; latent=flat is allowed"
    ),
    ("objective=beta_tc", "posterior=flow"): (
        "objective=beta_tc: needs independent dimensions in q(z|x); posterior=gaussian is allowed"
    ),
    ("objective=iwae", "trainer.compile=true"): (
        "objective.gradient=dreg: its hook is not compiled rightly; "
        "trainer.compile=false is allowed, or another objective.gradient"
    ),
    ("prior=flow", "model.latent_dim=1"): (
        "prior=flow: an autoregressive flow needs two dimensions; model.latent_dim=2 or more is allowed"
    ),
    ("prior=vamp", "objective=mmd", "kl.weight=0"): (
        "kl.weight=0: nothing would train prior=vamp with objective=mmd; "
        "prior=standard is allowed, or another kl.weight"
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
    assert (kl.target, kl.free_bits, kl.weight) == ("vae_cli.kl.Constant", 0.25, 1.0)
    assert configure("kl=cyclical", "kl.free_bits=0.5").kl.free_bits == 0.5


def seconds_of_children():
    """Return the processor's time that ended processes of this one took, which others on the machine do not add to."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_config_error_comes_before_torch_and_at_once():
    """The command stops with its one line, exit code 1 and no traceback, and torch was never imported."""
    check = (
        "import sys; from vae_cli.commands import train\n"
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


OWN = """
from vae_cli.config.types import Count, Literal
from vae_cli.model.mlp import MLP
from vae_cli.objective import beta_tc


class Mine(beta_tc.BetaTC):
    pass


class Wide(MLP):
    def __init__(self, *, latent_dim, width: Count, kind: Literal["a", "b"], **given):
        super().__init__(**given)


def open_to_all(**settings):
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Parts of a user's own, in a module that Python finds."""
    (tmp_path / "own_parts_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    yield "own_parts_of_mine"
    forget()


def test_a_users_subclass_is_refused_beside_a_ladder_as_ours_is(own):
    named = f"objective._target_={own}.Mine"
    line = "the layers of latent=ladder depend on one another; latent=flat is allowed"
    assert problem("objective=beta_tc", "model=ladder", named) == f"{named}: {line}"
    assert problem("objective=beta_tc", "kl=capacity", named) == (
        f"kl=capacity: has no effect with {named}; any other kl is allowed"
    )
    assert problem("objective=beta_tc", "posterior=flow", named).startswith(f"{named}: needs independent dimensions")


@pytest.mark.parametrize(("settings", "line"), [
    (["+model.width=-1", "+model.kind=a"], "model.width=-1: at least 1 is allowed"),
    (["+model.width=abc", "+model.kind=a"], "model.width=abc: an integer is allowed"),
    (["+model.width=3", "+model.kind=c"], "model.kind=c: 'a' or 'b' is allowed"),
    (["+model.width=3"], "model.kind: required; nothing was given"),
])  # fmt: skip
def test_a_users_own_part_is_typed_by_its_signature(own, settings, line):
    assert problem(f"model._target_={own}.Wide", *settings) == line


def test_what_a_users_own_part_does_not_take_is_told(own):
    line = problem(f"objective._target_={own}.Mine", "+objective.alhpa=1")
    assert line.startswith("objective.alhpa: no setting of own_parts_of_mine.Mine (allowed: objective.")
    assert configure(f"optimizer._target_={own}.open_to_all", "+optimizer.anything=1").optimizer.anything == 1
