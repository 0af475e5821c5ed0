"""The command as a person meets it: in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
import zipfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from tensorboard import program

import vae_cli
from tests.conftest import ROOT, TINY, command, train
from tests.documents import files, write
from tests.processes import Command, logged, wait_for
from vae_cli.system import checkpoint
from vae_cli.system.errors import UserError

QUICK = [*TINY, "trainer.batch_size=32"]


def test_sweeps_write_a_folder_a_job_and_give_each_job_its_own_seed(tmp_path):
    sweep = ["-m", "kl.weight=1,4", "seed=1,2", *QUICK, "trainer.log_every=1"]
    done = command(*sweep, f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 0, done.stderr
    assert "job 3: " in done.stdout
    summaries = [json.loads((tmp_path / "sweep" / str(k) / "summary.json").read_text()) for k in range(4)]
    assert len({summary["test/elbo"] for summary in summaries}) == 4
    alone = train(tmp_path / "alone", *QUICK, "trainer.log_every=1", "kl.weight=4.0", "seed=2")
    assert summaries[3]["test/elbo"] == alone["test/elbo"]  # the fourth job of a sweep equals the job alone


def test_a_failed_job_of_a_sweep_is_named_and_the_others_run(tmp_path):
    done = command("-m", "kl.weight=-1,1", *QUICK, f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 1
    assert "job 0 failed: kl.weight=-1: at least 0 is allowed" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "sweep" / "1" / "summary.json").is_file()


def test_resume_goes_on_in_place_with_the_runs_own_settings(tmp_path):
    folder = tmp_path / "a run"
    settings = [*QUICK, "model.hidden=[32,16]", f'hydra.run.dir="{folder}"']
    assert command(*settings).returncode == 0
    done = command(f'resume="{folder}"', "trainer.steps=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on at step 2" in done.stdout
    assert json.loads((folder / "summary.json").read_text())["steps"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a run"]
    assert "hidden:\n  - 32\n  - 16" in (folder / ".hydra" / "config.yaml").read_text()
    done = command(f'resume="{folder}"', "trainer.steps=6", cwd=tmp_path)
    assert "going on at step 5" in done.stdout


def test_what_resume_refuses(tmp_path):
    folder = tmp_path / "run"
    assert command(*QUICK, f"hydra.run.dir={folder}").returncode == 0
    kept = (folder / ".hydra" / "config.yaml").read_text()
    wrong = {
        f"resume={tmp_path}/absent": "no run to go on with there (.hydra/config.yaml is missing)",
        f"resume={folder} model.latent_dim=9": "model.latent_dim=9: a resumed run keeps its own settings",
        f"resume={folder} trainer.batch_size=9": "trainer.batch_size=9: a resumed run keeps its own settings",
        f"resume={folder} -m": "goes on with a single run, not with a sweep",
        f"resume={folder} trainer.device=mps": "trainer.device=mps: there is none on this machine",
        f"hydra.run.dir={folder} model.latent_dim=9": f"holds a run already; go on with resume={folder}",
    }
    for arguments, line in wrong.items():
        done = command(*arguments.split())
        assert (done.returncode, done.stdout) == (1, "")
        assert line in done.stderr
        assert done.stderr.count("\n") == 1
        assert (folder / ".hydra" / "config.yaml").read_text() == kept


def test_a_refused_run_leaves_another_runs_claim_alone(tmp_path):
    (tmp_path / "run" / ".hydra").mkdir(parents=True)  # a run that has just begun
    done = command(*QUICK, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 1
    assert "holds a run already" in done.stderr
    assert (tmp_path / "run" / ".hydra").is_dir()


def test_runs_started_at_once_each_get_a_folder(tmp_path):
    with ExitStack() as ends:
        runs = [ends.enter_context(Command(*QUICK, "hydra.job.name=x", f"seed={k}", cwd=tmp_path)) for k in range(3)]
        assert [run.done().returncode for run in runs] == [0, 0, 0]
    assert len(list((tmp_path / "outputs").rglob("summary.json"))) == 3


def test_an_interrupted_run_saves_says_how_to_go_on_and_ends_as_the_undisturbed_one(tmp_path):
    settings = [*QUICK, "trainer.log_every=10"]
    with Command(*settings, "trainer.steps=200000", f"hydra.run.dir={tmp_path}/run") as started:
        wait_for(lambda: logged(tmp_path / "run"))
        started.signal("SIGINT")
        done = started.done()
    assert done.returncode == 75
    assert done.stderr.startswith("vae-train: interrupted; go on with: vae-train resume=")
    assert done.stderr.count("\n") == 1
    step = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"]
    assert command(f"resume={tmp_path}/run", f"trainer.steps={step + 100}").returncode == 0
    whole = train(tmp_path / "whole", *settings, f"trainer.steps={step + 100}")
    resumed = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert resumed["steps"] == step + 100
    assert resumed["test/elbo"] == whole["test/elbo"]


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 1), ("SIGINT", -signal.SIGINT)])
def test_a_command_that_is_ending_is_not_interrupted(tmp_path, name, code):
    """Such a SIGTERM comes from torchrun, when another rank was lost; such a Ctrl-C from an impatient person."""
    program = f"import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.{name})\n"
    program += "from vae_cli.commands import train; train.main()"
    start = [sys.executable, "-c", program, "trainer.epochs=-1"]
    done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr == "vae-train: error: trainer.epochs=-1: at least 1 is allowed\n"


OWN = files(ROOT / "docs" / "own_parts.md")  # the example of a user's own part, file name → content


def test_the_documented_own_likelihood_works_from_any_folder(tmp_path):
    assert set(OWN) == {"mine/student.py", "mine/likelihood/student.yaml"}
    write(OWN, tmp_path)
    own = ["--config-dir", "mine", "likelihood=student"]
    done = command(*own, *QUICK, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "StudentT" in done.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test/elbo"] < 0
    done = command(*own, *QUICK, "likelihood.dof=3", "hydra.run.dir=other", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "likelihood.dof" in done.stderr
    done = command("resume=run", "trainer.steps=4", cwd=tmp_path)
    assert "give the folder of yours with --config-dir" in done.stderr
    done = command("--config-dir", "mine", "resume=run", "trainer.steps=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    evaluate = partial(
        command, "run=run", "trust=[student]", "metrics=[elbo]", module="vae_cli.commands.evaluate", cwd=tmp_path
    )
    line = "give the folder that holds student with --config-dir, in Python by sys.path.append"
    done = evaluate()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert line in done.stderr
    with pytest.raises(UserError, match=line):
        vae_cli.load(tmp_path / "run", trust=True)
    done = evaluate("--config-dir", "mine")
    assert done.returncode == 0, done.stderr


MISTAKES = {
    "outputs = 2": ("outputs = 3", "likelihood=StudentT: fails on two examples (ValueError: too many values"),
    "support = Real()": (
        'support = "real"',
        "likelihood=student.StudentT: its `support` is a vae_cli.likelihood.support.Support",
    ),
    "return Independent(p, event_dims, validate_args=False)": ("return p", "log_prob(x) has shape [1, 2, 12, 12]"),
    "import torch\n": ("import torch)\n", "cannot be imported (SyntaxError: unmatched ')' (student.py, line 1))"),
    "class StudentT": ("class Student_T", "student has no StudentT; did you mean Student_T?"),
}


@pytest.mark.parametrize("right", MISTAKES)
def test_a_mistake_in_an_own_part_gets_its_line(right, tmp_path):
    wrong, line = MISTAKES[right]
    write({name: content.replace(right, wrong) for name, content in OWN.items()}, tmp_path)
    done = command("--config-dir", "mine", "likelihood=student", *QUICK, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert line in done.stderr


def test_a_broken_yaml_is_named_and_hides_no_other_mistake(tmp_path):
    write(OWN, tmp_path)
    (tmp_path / "mine" / "model").mkdir()
    (tmp_path / "mine" / "model" / "broken.yaml").write_text("a: [1\n")
    own = ["--config-dir", "mine", "likelihood=student"]
    done = command(*own, "likelihood.dff=3", cwd=tmp_path)
    assert done.stderr == "vae-train: error: likelihood.dff: no such setting; did you mean likelihood.df?\n"
    done = command(*own, "model=broken", cwd=tmp_path)
    assert "model/broken.yaml:2: no valid YAML" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_part_from_nowhere_is_refused_in_one_line(tmp_path):
    done = command("likelihood._target_=os.system", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 1
    assert done.stderr == (
        "vae-train: error: likelihood._target_=os.system: not a part of vae_cli; "
        "give the folder of yours with --config-dir\n"
    )


NOTEBOOK = """
import numpy as np, torch
import vae_cli

assert "site" in vae_cli.__file__
vae = vae_cli.load(RUN, device="cpu")
x, y = vae_cli.load_data(RUN, "test")
q = vae.encode(x, y)
assert isinstance(q, torch.distributions.Distribution)
assert q.batch_shape == (len(x),) and q.event_shape == (vae.latent_dim,)
p = vae.decode(q.mean, y)
assert p.batch_shape == (len(x),) and p.event_shape == x.shape[1:]
assert vae.sample(16, y=3).shape == (16, *x.shape[1:])
elbo, bound = vae.elbo(x.numpy(), y, samples=50), vae.log_likelihood(np.asarray(x), y, samples=50)
assert elbo.shape == bound.shape == (len(x),)
assert bound.mean() > elbo.mean()
"""


def test_the_wheel_works_in_an_empty_folder(tmp_path):
    """Built without a network, unpacked beside nothing else of the repository: the command, then a notebook's cells."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    code = (
        "import vae_cli, vae_cli.commands.train, sys; assert 'site' in vae_cli.__file__; vae_cli.commands.train.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *QUICK, "conditional=label"],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (summary,) = (tmp_path / "empty" / "outputs").rglob("summary.json")
    done = subprocess.run(
        [sys.executable, "-c", f"RUN = {str(summary.parent)!r}\n{NOTEBOOK}"],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_completion_offers_groups_and_options():
    script = Path(sys.executable).with_name("vae-train")
    env = {**os.environ, "COMP_LINE": "vae-train model=", "COMP_POINT": "16"}
    done = subprocess.run([script, "-sc", "query=bash"], capture_output=True, text=True, env=env)
    assert {"model=conv", "model=mlp", "model=resnet", "model=linear"} <= set(done.stdout.split())


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_serves_the_tags_of_a_run(tmp_path):
    train(tmp_path / "run", *QUICK, "trainer.log_every=1")
    board = program.TensorBoard()
    loaded_first = ["--load_fast=false", "--reload_task=blocking", "--reload_interval=0"]
    board.configure(argv=[None, "--logdir", str(tmp_path), "--host", "127.0.0.1", "--port", "0", *loaded_first])
    url = board.launch()

    def ask(path):
        return json.loads(urllib.request.urlopen(f"{url}data/plugin/{path}", timeout=30).read())

    (scalars,) = ask("scalars/tags").values()
    assert {"train/elbo", "train/reconstruction", "train/kl", "train/kl_weight", "train/loss"} <= set(scalars)
    assert {"train/learning_rate", "train/grad_norm", "train/examples_per_second"} <= set(scalars)
    assert {"valid/elbo", "valid/reconstruction", "valid/kl", "valid/active_units"} <= set(scalars)
    (histograms,) = ask("histograms/tags").values()
    (images,) = ask("images/tags").values()
    assert set(histograms) == {"valid/kl_by_dimension"}
    assert set(images) == {"reconstructions", "samples", "traversals"}
    (info,) = (ask(f"projector/info?run={run}") for run in ask("projector/runs"))
    (codes,) = info["embeddings"]
    assert codes["tensorShape"] == [20, 4]
    assert {"metadataPath", "sprite"} <= set(codes)
    body = json.dumps({"experimentName": "", "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_RUNNING", "STATUS_SUCCESS"],
                       "colParams": [{"metric": {"group": "", "tag": "test/elbo"}}],
                       "startIndex": 0, "sliceSize": 10}).encode()  # fmt: skip
    address, kind = f"{url}data/plugin/hparams/session_groups", {"Content-Type": "application/json"}
    request = urllib.request.Request(address, body, kind)
    groups = json.loads(urllib.request.urlopen(request, timeout=30).read())["sessionGroups"]
    assert len(groups) == 1
    assert groups[0]["hparams"]["model.latent_dim"] == 4


def test_training_imports_neither_compiler_nor_torchvision(tmp_path):
    code = "import sys; from vae_cli.commands import train; from vae_cli.training import step\n" \
        "step.Step.__call__ = lambda *_, **__: sys.exit(str({'torch._dynamo', 'torchvision', 'sklearn', 'matplotlib'}" \
        " & set(sys.modules)))\ntrain.main()"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, f"hydra.run.dir={tmp_path}/run"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == "set()\n"
