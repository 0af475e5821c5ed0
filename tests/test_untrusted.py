"""Everything that a run folder or a file from elsewhere holds is data: nothing of it runs, and each gets a line."""

import csv
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from contextlib import suppress
from resource import RUSAGE_SELF, getrusage
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import TINY, command, configure, train
from vae_cli import api, finished, parts
from vae_cli.commands.generate.sources import read_codes
from vae_cli.config.options import GROUPS, targets
from vae_cli.config.trust import foreign
from vae_cli.data import arrays as files
from vae_cli.data import decoding, images, shards
from vae_cli.data.webdataset import reader
from vae_cli.system import checkpoint
from vae_cli.system.disk import write_csv
from vae_cli.system.errors import UserError

MARK = "harm-was-done"


class Harm:
    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


@pytest.fixture
def crafted(tmp_path, monkeypatch):
    """A finished run in the folder `run`, in a working folder where nothing may appear by the name of MARK."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    train(folder, *TINY)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(configure(*TINY).plain))
    yield folder
    assert not (tmp_path / MARK).exists()


def read_arrays(path):
    return files.arrays(path=str(path), labels=None, missing="refused")


def rewrite(folder, change):
    path = folder / ".hydra" / "config.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_a_pickle_in_place_of_a_checkpoint_does_not_run(crafted, name):
    for write in (
        lambda path: path.write_bytes(pickle.dumps(Harm())),
        lambda path: torch.save({"model": Harm()}, path),
    ):
        for each in ("best.pt", "last.pt"):
            write(crafted / "checkpoints" / each)
        with pytest.raises(UserError, match="not a whole checkpoint"):
            checkpoint.load(crafted / "checkpoints" / name)
        with pytest.raises(UserError, match="not a whole checkpoint"):
            api.load(crafted)
        done = command(f"resume={crafted}", "trainer.steps=5")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1


TARGETS = (
    "os.system", "subprocess.run", "builtins.eval", "vae_cli.commands.train.os.system",
    "vae_cli.commands.train._withdraw", "vae_cli.commands.shared.os.system", "vae_cli.data.batches.cache._write",
    "vae_cli.likelihood.torch.load", "torch.load",
    "torch.optim.lr_scheduler.os.system",
)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("group", ["data", "likelihood", "optimizer", "kl"])
def test_a_target_that_is_no_option_of_ours_is_refused(target, group):
    assert foreign(group, {"_target_": target, "command": f"touch {MARK}"}) == target
    assert foreign(group, {"_target_": target}, trust=["mine"]) == target
    assert foreign(group, {"_target_": target}, trust=[target.partition(".")[0]]) is None


def test_our_own_targets_pass():
    assert all(foreign(group, {"_target_": target}) is None for group in GROUPS for target in targets(group))
    assert foreign("trainer", {"epochs": 3}) is None


def test_a_crafted_target_is_refused_by_every_command(crafted):
    rewrite(crafted, lambda content: content["likelihood"].update(_target_="vae_cli.commands.train.os.system"))
    line = r"likelihood\._target_=vae_cli\.commands\.train\.os\.system: not a part of vae_cli"
    with pytest.raises(UserError, match=line):
        api.load(crafted)
    done = command(f"resume={crafted}", "trainer.steps=5")
    assert done.returncode == 1
    assert "part of vae_cli" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", [
    f"!!python/object/apply:os.system ['touch {MARK}']", "a: !!python/name:os.system", "data: {_target_: [1",
    "\x00\x01", "- 1\n- 2", "data: 3",
])  # fmt: skip
def test_a_yaml_that_is_no_settings_is_refused(crafted, text):
    (crafted / ".hydra" / "config.yaml").write_text(text)
    with pytest.raises(UserError):
        api.load(crafted)
    done = command(f"resume={crafted}", "trainer.steps=5")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_settings_do_not_read_the_environment(crafted, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    rewrite(crafted, lambda content: content["data"].update(limit="${oc.env:SECRET}"))
    done = command(f"resume={crafted}", "trainer.steps=5")
    assert done.returncode == 1
    assert "hunter2" not in done.stderr + done.stdout
    with pytest.raises(UserError) as error:
        api.load(crafted)
    assert "hunter2" not in str(error.value)


def npy(shape, dtype="|u1"):
    """The header of an array that claims more than there is."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def test_arrays_that_claim_more_than_the_memory_are_refused(tmp_path):
    (tmp_path / "big.npy").write_bytes(npy((10**9, 10**6)) + b"\0" * 64)
    with zipfile.ZipFile(tmp_path / "big.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy((10**9, 10**6)) + b"\0" * 10_000)
    for name in ("big.npy", "big.npz"):
        with pytest.raises(UserError, match=r"its arrays need .* GiB; .* GiB are free"):
            read_arrays(tmp_path / name)


def test_objects_in_arrays_are_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    array = np.empty(3, dtype=object)
    array[:] = [Harm(), Harm(), Harm()]
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=array)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(UserError, match="Python objects, which are never unpickled"):
            read_arrays(tmp_path / name)
    assert not (tmp_path / MARK).exists()


NAMES = ("../../escaped", "/tmp/escaped", "a/b\tc\nd", "\x1b[2Jcon", "$(touch escaped)", "<i onload=x>")


def test_names_lead_nowhere(crafted, tmp_path):
    """Names of classes and of an archive's members are text: no file is made of them."""
    x, y = np.random.default_rng(0).integers(0, 256, (60, 6, 6), dtype=np.uint8), np.array(NAMES * 10)
    np.savez(tmp_path / "named.npz", x=x, y=y, **{"../../escaped": x})
    before = set(tmp_path.parent.iterdir()) | set(tmp_path.iterdir())
    settings = ["data=arrays", f"data.path={tmp_path}/named.npz", "conditional=label", "model.latent_dim=2"]
    folder = tmp_path / "named"
    done = command(*settings, "trainer.steps=2", f"hydra.run.dir={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = command(
        f"run={folder}", "task.condition=all", "task.n=1", module="vae_cli.commands.generate.app", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    assert set(tmp_path.parent.iterdir()) | set(tmp_path.iterdir()) == before | {folder}
    assert not [path for path in folder.rglob("*") if "escaped" in path.name]
    assert "<i onload" not in (folder / "report.html").read_text()
    assert "\x1b" not in done.stdout + made.stdout + (folder / "report.html").read_text()


def test_a_picture_that_would_inflate_beyond_reason_is_refused(tmp_path):
    """A PNG of some hundred bytes that claims 10⁵ × 10⁵ pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    (tmp_path / "a.png").write_bytes(bomb)
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image"):
        images.images(path=str(tmp_path), size=8, color="grayscale", resize="crop", on_broken="stop")


def test_postscript_by_the_name_of_a_picture_starts_no_program(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: started.append(1))
    harm = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(harm)
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image"):
        images.images(path=str(tmp_path), size=8, color="grayscale", resize="crop", on_broken="stop")
    with pytest.raises(OSError, match="cannot identify"):
        reader.Reader(None, "crop", None, skip=False).x({"png": harm})
    assert not started


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA"])
@pytest.mark.parametrize("suffix", sorted(images.SUFFIXES - {".pgm"}))
def test_every_kind_of_picture_that_is_listed_is_read(tmp_path, suffix, mode):
    mode = "RGB" if suffix in (".jpg", ".jpeg", ".ppm", ".webp") else mode
    picture = Image.new("RGB", (6, 4), (200, 100, 50)).convert(mode)
    picture.save(tmp_path / f"a{suffix}")
    assert decoding.picture(tmp_path / f"a{suffix}", None, "RGB").shape == (3, 4, 6)


TOO_MANY = (
    "/x-{0..99999999999}.tar", "/x-{0..9999}{0..9999}.tar", "/{a..z}{a..z}{a..z}{a..z}{a..z}", "pipe:x {1..9999999}",
    "/{a,b}" * 40, "/x-{0..-99999999999}", "/{0..99999999999..3}", f"/{{0..{'9' * 200}}}",
)  # fmt: skip


@pytest.mark.parametrize("pattern", TOO_MANY)
def test_a_pattern_of_more_shards_than_there_could_be_is_not_expanded(pattern):
    with pytest.raises(UserError, match=r"data\.path=.*: names up to .* shards; at most 1,000,000 are allowed"):
        shards._expanded("data.path", pattern)


@pytest.mark.parametrize("pattern", ["/x-{000..123}.tar", "/{a,b,{c,d}}-{0..9..2}", "/x", "/{a..e}", "/{0..", "/{,}"])
def test_a_pattern_is_counted_without_being_expanded(pattern):
    import braceexpand

    with suppress(ValueError):
        assert len(list(braceexpand.braceexpand(pattern))) <= shards._many(pattern) <= 200
    with pytest.raises(UserError, match=r"data\.path=/"):
        shards._expanded("data.path", pattern)


def rewritten(good, path, method=zipfile.ZIP_STORED, **contents):
    """Write a checkpoint anew with other contents of some records, in another way of storing them."""
    with zipfile.ZipFile(good) as before, zipfile.ZipFile(path, "w", method) as after:
        for record in before.infolist():
            name = record.filename.rpartition("/")[2].partition(".")[0]
            after.writestr(record.filename, contents.get(name, before.read(record)))


def test_a_checkpoint_that_would_inflate_is_refused_unread(tmp_path, monkeypatch):
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    checkpoint.save({"model": torch.zeros(100_000), "step": 3}, good)
    rewritten(good, bad)
    assert checkpoint.load(bad)["step"] == 3
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read"))
    rewritten(good, bad, zipfile.ZIP_DEFLATED)
    assert bad.stat().st_size < 2000
    _refused(bad)
    takes_memory = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    rewritten(good, bad, data=takes_memory)
    _refused(bad)
    bad.write_bytes(pickle.dumps({"format": 3}) + good.read_bytes())  # an archive for one reader, a pickle for another
    _refused(bad)


def test_containers_that_share_their_parts_without_end_are_refused_at_once(tmp_path):
    grown = [1]
    for _ in range(60):
        grown = [grown, grown]
    torch.save({"format": checkpoint.FORMAT, "digest": "", "model": grown}, tmp_path / "last.pt")
    _refused(tmp_path / "last.pt")


def _refused(path):
    with pytest.raises(UserError, match="not a whole checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("step", ["../../../escaped", -10, True, 1.5, 10**30, None])
def test_a_step_that_is_no_count_is_refused(crafted, step):
    for name in ("best.pt", "last.pt"):
        path = crafted / "checkpoints" / name
        checkpoint.save(checkpoint.load(path) | {"step": step}, path)
    with pytest.raises(UserError, match=r"best\.pt: does not fit the run's settings \(TypeError: its step is no count"):
        api.load(crafted)
    with pytest.raises(UserError, match=r"last\.pt: does not fit .* its step is no count"):
        train(crafted, *TINY, "trainer.steps=5", resume=True)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [("spec", "shape", [1_500_000]), ("model", "hidden", [10**7])],
)
def test_memory_is_not_taken_for_another_model_than_the_weights_are_of(crafted, group, name, value):
    path = crafted / "checkpoints" / "best.pt"
    state = checkpoint.load(path)
    if group == "spec":
        checkpoint.save(state | {"spec": state["spec"] | {name: value}}, path)
    else:
        state["config"][group][name] = value
        checkpoint.save(state, path)
        rewrite(crafted, lambda content: content[group].update({name: value}))
    before = getrusage(RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        UserError, match=r"does not fit the run's settings \(RuntimeError: the model would be far larger"
    ):
        api.load(crafted)
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


def valid_npz():
    file = io.BytesIO()
    np.savez(file, x=np.zeros((20, 4, 4), np.uint8), y=np.arange(20) % 2)
    return file.getvalue()


VALID = valid_npz()


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=6),
       cut=st.integers(0, len(VALID)))  # fmt: skip
def test_arrays_with_wrong_bytes_never_crash(tmp_path, edits, cut):
    data = bytearray(VALID)
    for place, value in edits:
        data[place] = value
    path = tmp_path / "fuzzed.npz"
    path.write_bytes(data if cut % 3 else data[:cut])
    try:
        found = read_arrays(path)
        assert len(found.train) > 0
    except UserError as error:
        lines = str(error).count("\n")
    else:
        lines = 0
    assert lines == 0


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_checkpoints_with_wrong_bytes_never_crash(tmp_path, data):
    path = tmp_path / "fuzzed.pt"
    if not path.exists():
        checkpoint.save({"model": {"w": torch.ones(4)}, "step": 3}, tmp_path / "good.pt")
    content = bytearray((tmp_path / "good.pt").read_bytes())
    places = data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8))
    for place in places:
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        assert checkpoint.load(path)["step"] == 3
    except UserError as error:
        lines = str(error).count("\n")
    else:
        lines = 0
    assert lines == 0


def test_codes_from_elsewhere_are_data(crafted):
    model = api.load(crafted, device="cpu")
    np.savez("codes.npz", z=np.array([Harm()], dtype=object))
    with pytest.raises(UserError, match=r"task\.codes=codes\.npz"):
        read_codes("codes.npz", model)


def test_results_that_are_no_numbers_do_no_harm_in_a_comparison(crafted, capsys):
    from vae_cli.commands.compare import compare

    (crafted / "summary.json").write_text(json.dumps({"test/elbo": "<script>", "measure": ["x\x1b"], "warnings": 3}))
    assert [row.values("test/elbo") for row in compare([str(crafted)])] == [[]]
    assert "\x1b" not in capsys.readouterr().out


NO_OBJECTS = ["[]", "3", "null", '"text"', "", "{", "[" * 100_000, "9" * 5000, "\x00", '{"a": 1']


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_results_that_are_none_are_refused_or_passed_over(tmp_path, text):
    from vae_cli.commands import compare, folders
    from vae_cli.commands import evaluate as evaluation
    from vae_cli.training import pruning

    folder = tmp_path / "0"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(configure(*TINY).plain))
    (folder / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"summary\.json: cannot be read"):
        compare.compare([str(folder)])
    assert folders.read_summary(folder) is None
    rule = pruning.MedianRule(tmp_path / "1", measure="m", jobs=1, earliest=0.0)
    (tmp_path / "1").mkdir()
    for metrics in (folder, tmp_path / "1"):
        (metrics / "metrics.jsonl").write_text('{"step": 1, "epoch": 1.0, "valid/elbo": -1.0}\n')
    assert rule(1.0) is None
    (folder / "summary.json").write_text("{}")
    assert rule(1.0) is None
    (folder / "evaluation.json").write_text(text)
    with pytest.raises(UserError, match=r"evaluation\.json: cannot be read"):
        compare.compare([str(folder)])
    facts = {"settings": SimpleNamespace(split="test", seed=0), "folder": folder, "step": 3, "data": [1, 2]}
    evaluation._write(SimpleNamespace(**facts, measure="m", notes=[]), {"elbo": -1.0})
    assert json.loads((folder / "evaluation.json").read_text())["test/elbo"] == -1.0


def test_a_score_that_is_no_number_is_not_handed_to_a_sweeper():
    from vae_cli.commands.train import _score

    assert _score({"score": "valid/elbo"}, {"valid/elbo": -1, "train/elbo": -2}) == -1.0
    for odd in ("high", None, [1], float("inf"), True):
        with pytest.raises(UserError, match="is no number"):
            _score({"score": "valid/elbo"}, {"valid/elbo": odd, "train/elbo": -2})


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    texts = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\x1b[31m", "-1.5", "plain", "\n=1"]
    path = write_csv(tmp_path / "a.csv", [texts, [-1.5, None, 3]])
    first, second = csv.reader(path.read_text().splitlines())
    assert first == ["'=1+1", "'+1+1", "'-1+1", "'@SUM(A1)", r"\x1b[31m", "-1.5", "plain", r"\n=1"]
    assert second == ["-1.5", "", "3"]


@pytest.mark.parametrize("flag", ["--experimental-rerun", "--experimental-rerun=x.pickle", "--exp", "--e=x"])
def test_settings_are_not_read_from_a_pickle(flag):
    from vae_cli.commands.shared import _refuse_pickles

    with pytest.raises(UserError, match=rf"^{flag}: not allowed, it would run what a pickle holds"):
        _refuse_pickles(["seed=1", flag, "x.pickle"])
    _refuse_pickles(["--help", "-e", "--", "--config-dir", "seed=1"])


@pytest.mark.parametrize("module", ["train", "evaluate", "generate.app", "export", "pack"])
def test_no_command_reads_settings_from_a_pickle(tmp_path, module):
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(Harm()))
    done = command("--experimental-rerun", "x.pickle", module=f"vae_cli.commands.{module}", cwd=tmp_path)
    assert done.returncode == 1
    assert "--experimental-rerun: not allowed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / MARK).exists()


def test_parts_of_a_trusted_package_are_built(crafted, tmp_path, monkeypatch):
    own = "from vae_cli.likelihood.bernoulli import Bernoulli\n\n\nclass Own(Bernoulli):\n    pass\n"
    (tmp_path / "mine.py").write_text(own)
    monkeypatch.syspath_prepend(str(tmp_path))
    rewrite(crafted, lambda content: content["likelihood"].update(_target_="mine.Own"))
    state = checkpoint.load(crafted / "checkpoints" / "best.pt")
    state["config"]["likelihood"]["_target_"] = "mine.Own"
    checkpoint.save(state, crafted / "checkpoints" / "best.pt")
    with pytest.raises(UserError, match=r"trust=\[mine\] runs it"):
        finished.restore(crafted, torch.device("cpu"))
    with pytest.raises(UserError, match=r"trust=\[mine\] runs it"):
        finished.restore(crafted, torch.device("cpu"), trust=["other"])
    assert type(finished.restore(crafted, torch.device("cpu"), trust=["mine"]).vae.likelihood).__name__ == "Own"


@pytest.mark.parametrize("key", ["path", "valid_path", "test_path"])
def test_a_command_in_place_of_data_does_not_run(crafted, key):
    config = configure("data=shards", "data.path=x").plain["data"]
    rewrite(crafted, lambda content: content.update(data=config | {key: f"pipe:touch {MARK}"}))
    with pytest.raises(UserError, match=rf"data\.{key}=pipe:touch {MARK}: a command; trust=\[pipe\] lets it run"):
        api.load(crafted)
    with pytest.raises(UserError, match=r"trust=\[pipe\]"):
        api.load_data(crafted, trust=["mine"], data="elsewhere")
    done = command(f"resume={crafted}", "trainer.steps=5")
    assert done.returncode == 1
    assert f"its data.{key} would run a command" in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_pattern_becomes_a_command(crafted):
    """What is no command when it is checked is none when its braces have been expanded."""
    config = configure("data=shards", "data.path=x").plain["data"]
    for path in (f"pi{{pe:touch {MARK},pe:}}", f" pipe:touch {MARK}"):
        rewrite(crafted, lambda content, path=path: content.update(data=config | {"path": path}))
        with pytest.raises(UserError, match="is not there"):
            parts.load_dataset(finished.settings_of(crafted))
