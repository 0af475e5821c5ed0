"""Parts state facts and types of themselves; one check reads them from their source, a user's own likewise."""

import subprocess
import sys
import textwrap

import pytest

from tests.conftest import ROOT, command, configure
from vae_cli.config import signatures
from vae_cli.system.errors import UserError

OWN = '''
from vae_cli.config.types import Count, Positive
from vae_cli.objective.beta_tc import BetaTC
from vae_cli.objective.elbo import ELBO


class Mine(BetaTC):
    """Facts and settings are those of the base class."""


class Typed(ELBO):
    def __init__(self, *, samples: Count, strength: Positive, name: str = "a"):
        super().__init__(samples=samples)


class Open(ELBO):
    def __init__(self, *, samples: Count, **more):
        super().__init__(samples=samples)


def undecided(samples, anything):
    return ELBO(samples=samples)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of a user's own, with parts in a module that is read and never run."""
    folder = tmp_path / "conf" / "objective"
    folder.mkdir(parents=True)
    (tmp_path / "conf" / "own_parts.py").write_text("raise SystemExit('imported')\n" + textwrap.dedent(OWN))
    (folder / "mine.yaml").write_text(
        "_target_: own_parts.Mine\nalpha: 1.0\nbeta: 6.0\ngamma: 1.0\nweights: stratified\nsamples: 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "conf")
    signatures.forget()
    yield tmp_path / "conf"
    signatures.forget()


def refusal(*overrides):
    with pytest.raises(UserError) as caught:
        configure(*overrides)
    return str(caught.value)


def objective(name, *settings):
    return [f"objective._target_=own_parts.{name}", *settings]


def test_a_subclass_is_refused_with_what_its_base_is_refused_with(own):
    settings = ["objective=beta_tc", *objective("Mine")]
    configure(*settings)
    for beside in (["latent=ladder"], ["posterior=full_gaussian"], ["kl=capacity"], ["kl.free_bits=0.1"]):
        ours, theirs = refusal("objective=beta_tc", *beside), refusal(*settings, *beside)
        assert theirs == ours.replace("objective=beta_tc", "objective._target_=own_parts.Mine")
        assert theirs.endswith("is allowed")


def test_an_option_of_a_users_own_folder_is_refused_on_the_command_line(own, tmp_path):
    said = command(f"--config-dir={own}", "objective=mine", "latent=ladder", f"hydra.run.dir={tmp_path}/run")
    assert said.returncode != 0
    (line,) = said.stderr.strip().splitlines()
    assert line.endswith("the layers of latent=ladder depend on one another; latent=flat is allowed")
    assert "own_parts.Mine" in line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["+objective.strength=much"], "objective.strength=much: a number is allowed"),
        (["+objective.strength=-1.0"], "objective.strength=-1.0: more than 0 is allowed"),
        (["+objective.strength=1.0", "objective.samples=0"], "objective.samples=0: at least 1 is allowed"),
        (["+objective.strength=1.0", "+objective.name=3"], "objective.name=3: a text is allowed"),
        ([], "objective.strength: required; nothing was given"),
        (
            ["+objective.strength=1.0", "+objective.stength=1.0"],
            "objective.stength: no setting of own_parts.Typed "
            "(allowed: objective.samples, objective.strength, objective.name)",
        ),
    ],
)
def test_a_users_own_part_is_checked_by_its_signature(own, given, said):
    assert refusal(*objective("Typed", *given)) == said


def test_what_fits_the_signature_is_accepted_and_not_imported(own):
    found = configure(*objective("Typed", "+objective.strength=2.0")).objective
    assert found.settings == {"samples": 1, "strength": 2.0}
    found = configure(*objective("Open", "+objective.whatever=[1,2]")).objective
    assert found.settings == {"samples": 1, "whatever": [1, 2]}
    assert refusal(*objective("Open", "objective.samples=0")) == "objective.samples=0: at least 1 is allowed"
    found = configure(*objective("undecided", "+objective.anything={a: 1}")).objective
    assert found.settings["anything"] == {"a": 1}
    assert "own_parts" not in sys.modules


def test_checking_a_configuration_imports_no_torch():
    code = (
        "import sys; from vae_cli.config import compose, validate; import vae_cli.config.rules;"
        "assert 'torch' not in sys.modules, 'import';"
        "from vae_cli.config.signatures import signature as read;"
        "assert read('vae_cli.objective.beta_tc.BetaTC').facts['needs'];"
        "assert 'torch' not in sys.modules, 'read'"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
