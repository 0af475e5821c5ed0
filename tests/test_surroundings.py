"""What surrounds a run goes wrong: downloads, folders, homes, names, clocks, disks, memory."""

import ctypes
import gzip
import hashlib
import json
import os
import pwd
import resource
import shlex
import shutil
import struct
import subprocess
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from tests.conftest import TINY, command, train
from tests.ordeals import assert_same, curves, equal, full_after, killed_after, numbers, weights
from tests.processes import Command, logged, wait_for
from vae_cli import api
from vae_cli.data import vision
from vae_cli.system.errors import UserError

SHORT = [*TINY, "trainer.steps=24", "trainer.log_every=4", "trainer.checkpoint_every=8", "trainer.batch_size=32",
         "trainer.log_likelihood_samples=4"]  # fmt: skip


# ── downloads ────────────────────────────────────────────────────────────────────────────────────────────────────────


def idx(array):
    """The bytes of an array as MNIST's files hold them."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def host(monkeypatch):
    """A host of MNIST, ten digits a part, whose `files` may be made to lie; `cut` says where its answers break off."""
    chance = np.random.default_rng(0)
    arrays = {
        f"{part}-{kind}": chance.integers(0, 10, shape, dtype=np.uint8)
        for part in ("train", "t10k")
        for kind, shape in (("images-idx3-ubyte", (10, 28, 28)), ("labels-idx1-ubyte", (10,)))
    }

    class Host(BaseHTTPRequestHandler):
        files: ClassVar = {f"/{name}.gz": gzip.compress(idx(array)) for name, array in arrays.items()}
        cut: ClassVar = None

        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.files.get(self.path, b""))))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(self.files[self.path][: self.cut])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    sums = [(path[1:], hashlib.md5(content).hexdigest()) for path, content in Host.files.items()]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    monkeypatch.setattr(vision, "_require_network", lambda *_: None)
    yield Host
    server.shutdown()
    server.server_close()


def test_a_download_arrives(host, tmp_path):
    splits = vision.mnist(root=str(tmp_path))
    assert (len(splits.train), len(splits.test)) == (10, 10)


@pytest.mark.parametrize("fault", ["cut off", "another file"])
def test_a_faulty_download_is_told_and_the_next_one_is_whole(host, tmp_path, fault):
    files = dict(host.files)
    if fault == "cut off":
        host.cut = 500
    else:
        host.files = {path: gzip.compress(b"something else") for path in files}
    with pytest.raises(
        UserError, match=r"its download failed: .*cut off, or its checksum is wrong; .* try again"
    ) as error:
        vision.mnist(root=str(tmp_path))
    assert "\n" not in str(error.value)
    host.files, host.cut = files, None
    assert len(vision.mnist(root=str(tmp_path)).train) == 10


def test_a_file_that_was_cut_off_while_it_was_unpacked_is_told_with_what_to_do(host, tmp_path):
    vision.mnist(root=str(tmp_path))
    unpacked = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    unpacked.write_bytes(unpacked.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"its files cannot be read: .*; damaged ones come anew once deleted$"):
        vision.mnist(root=str(tmp_path))
    unpacked.unlink()
    assert len(vision.mnist(root=str(tmp_path)).train) == 10


def test_a_download_into_a_full_disk_is_told(host, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", full)
    with pytest.raises(UserError, match=r"its download failed: .*No space left on device"):
        vision.mnist(root=str(tmp_path))


# ── folders, homes, names ────────────────────────────────────────────────────────────────────────────────────────────


def obedient():
    """Take the privileges from this process, so that root, too, may write only where its files allow it."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # of version 3, for this process
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0


def homeless():
    """Let no list of users know this one."""

    def unknown(_):
        raise KeyError("getpwuid(): uid not found")

    obedient()
    pwd.getpwuid = unknown


def test_data_are_read_from_a_folder_that_cannot_be_written(tmp_path, host):
    vision.mnist(root=str(tmp_path / "data"))
    pictures = tmp_path / "data" / "pictures"
    pictures.mkdir()
    for k in range(12):
        Image.fromarray(np.full((8, 8), 20 * k, np.uint8)).save(pictures / f"{k}.png")
    np.save(tmp_path / "data" / "x.npy", np.zeros((12, 4, 4), np.uint8))
    for path in [*(tmp_path / "data").rglob("*"), tmp_path / "data"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for k, data in enumerate((["data=mnist", f"data.root={tmp_path}/data"],
                              ["data=images", f"data.path={pictures}", "data.size=8"],
                              ["data=arrays", f"data.path={tmp_path}/data/x.npy"])):  # fmt: skip
        done = command(*data, "data.valid=2", "debug=fast", f"hydra.run.dir={tmp_path}/run{k}", before=obedient)
        assert done.returncode == 0, done.stderr
    done = command("data=kmnist", f"data.root={tmp_path}/data", f"hydra.run.dir={tmp_path}/run9", before=obedient)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    (tmp_path / "data").chmod(0o755)


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    done = command(*TINY, f"hydra.run.dir={tmp_path}/closed/run", before=obedient)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"vae-train: error: {tmp_path}/closed/run: Permission denied\n"


@pytest.mark.parametrize("home", [None, "/dev/null"])
def test_no_home(tmp_path, home):
    """No HOME at all, for a user whom no list knows; and one that is no folder."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME", "USER")}
    environment |= {} if home is None else {"HOME": home}
    environment |= {"TMPDIR": str(tmp_path)}
    done = command(*TINY, f"hydra.run.dir={tmp_path}/run", before=homeless, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_path_with_spaces_and_letters_of_any_language(tmp_path):
    """A whole life in such a folder: train, resume, evaluate, generate, compare, export."""
    home = tmp_path / "Läufe für α=½ 実験 'a' [1], x=y"
    home.mkdir()
    quoted = str(home / "ein Lauf").replace("'", "\\'")
    np.savez(home / "dåta.npz", x=np.random.default_rng(0).integers(0, 256, (60, 6, 6), dtype=np.uint8))
    path = str(home / "dåta.npz").replace("'", "\\'")
    steps = (
        ("vae_cli.commands.train", "data=arrays", f"data.path='{path}'", "model.latent_dim=2", "trainer.steps=4",
         f"hydra.run.dir='{quoted}'"),
        ("vae_cli.commands.train", f"resume='{quoted}'", "trainer.steps=6"),
        ("vae_cli.commands.evaluate", f"run='{quoted}'", "samples=4"),
        ("vae_cli.commands.generate.app", f"run='{quoted}'", "task=interpolate", "task.indices=[0,1]"),
        ("vae_cli.commands.compare", home / "ein Lauf"),
    )  # fmt: skip
    for module, *arguments in steps:
        done = command(*arguments, module=module, cwd=home)
        assert done.returncode == 0, (module, done.stderr)
    run = home / "ein Lauf"
    assert json.loads((run / "summary.json").read_text())["steps"] == 6
    assert "ein Lauf" in (run / "report.html").read_text()
    assert (run / "evaluation.json").is_file()
    assert list((run / "generated" / "interpolate").glob("*.png"))
    assert sorted(each.name for each in tmp_path.iterdir()) == [home.name]
    done = command(*_line_of_an_interrupted_run(home / "noch einer"), "trainer.steps=3", cwd=home)
    assert done.returncode == 0, done.stderr


def _line_of_an_interrupted_run(folder):
    """Interrupt a run, and return the arguments that it says to go on with, as the shell would split them."""
    quoted = str(folder).replace("'", "\\'")
    with Command(*TINY, "trainer.steps=200000", f"hydra.run.dir='{quoted}'", cwd=folder.parent) as started:
        wait_for(lambda: logged(folder))
        started.signal("SIGTERM")
        return shlex.split(started.done().stderr.partition("go on with: vae-train ")[2])


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0, -1e9])
def test_a_clock_that_jumps(tmp_path, monkeypatch, jump):
    """At every look the clock is elsewhere, and after a resumption it is a day earlier: nothing else changes."""
    train(tmp_path / "whole", *SHORT)
    true, looked = time.time, [0]

    def jumping():
        looked[0] += 1
        return true() + (jump if looked[0] % 2 else 0.0)

    monkeypatch.setattr(time, "time", jumping)
    with pytest.raises(KeyboardInterrupt), killed_after(18):
        train(tmp_path / "run", *SHORT)
    monkeypatch.setattr(time, "time", lambda: true() - 86_400.0)
    train(tmp_path / "run", *SHORT, resume=True)
    assert looked[0]
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["train_seconds"] < 3600


# ── a checkpoint of another run ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("other", "named"), [
    (["model.hidden=[200]"], r"model\.hidden=\[200\]; this one has \[400\]"),
    (["model=conv"], r"model\._target_=vae_cli\.model\.conv\.Conv; this one has vae_cli\.model\.mlp\.MLP"),
    (["model.activation=tanh"], r"model\.activation=tanh; this one has relu"),  # whose weights would fit
    (["trainer.ema=0.9"], r"trainer\.ema=0\.9; this one has None"),
])  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused_by_the_setting_that_differs(tmp_path, other, named):
    assert command(*SHORT, f"hydra.run.dir={tmp_path}/run").returncode == 0
    train(tmp_path / "other", *SHORT, *other)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    for name in ("last.pt", "best.pt"):
        shutil.copy(tmp_path / "other" / "checkpoints" / name, tmp_path / "run" / "checkpoints" / name)
    with pytest.raises(UserError, match=rf"last\.pt: of another run, which had {named}"):
        train(tmp_path / "run", *SHORT, "trainer.steps=30", resume=True)
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(UserError, match=rf"best\.pt: of another run, which had {named}"):
        api.load(tmp_path / "run")


# ── disks and memory ─────────────────────────────────────────────────────────────────────────────────────────────────


SMALL = [*SHORT, "model.hidden=[4]", "trainer.steps=48", "trainer.log_every=1"]


def test_a_run_goes_on_without_an_event_file_that_cannot_be_written(tmp_path):
    longer = [*SMALL, "trainer.steps=96"]
    train(tmp_path / "whole", *longer)
    size = (tmp_path / "whole" / "checkpoints" / "last.pt").stat().st_size + 1024
    assert next((tmp_path / "whole" / "tensorboard").glob("events*")).stat().st_size > size
    done = command(*longer, f"hydra.run.dir={tmp_path}/run", before=partial(full_after, size))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("warning: tensorboard: could not be written ([Errno 27] File too large)") == 1
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    written = curves(tmp_path / "run")["train/elbo"]
    assert written == curves(tmp_path / "whole")["train/elbo"][: len(written)]
    assert "/figures/" in done.stdout or (tmp_path / "run" / "figures" / "elbo.png").is_file()


@pytest.mark.parametrize(
    ("name", "opened"), [("metrics.jsonl", "metrics.jsonl"), ("summary.json", "summary.json.partial")]
)
def test_a_file_that_a_run_needs_and_cannot_write_is_named(tmp_path, name, opened):
    """A full disk for one file alone: /dev/full stands in its place."""
    folder = tmp_path / "run"
    assert command(*SMALL, "trainer.steps=8", f"hydra.run.dir={folder}").returncode == 0
    before = weights(folder)
    (folder / name).unlink()
    done = command(f"resume={folder}", "trainer.steps=16", before=partial(full, folder / opened))
    assert done.returncode == 1
    assert done.stderr == f"vae-train: error: {folder}/{name}: cannot be written (No space left on device)\n"
    if name == "metrics.jsonl":
        assert equal(weights(folder), before)
    again = command(f"resume={folder}", "trainer.steps=16")
    assert again.returncode == 0, again.stderr


def full(path):
    """Let opening this one file for writing open a full disk."""
    own = Path.open

    def opened(self, *arguments, **named):
        mode = arguments[0] if arguments else named.get("mode", "r")
        return own(Path("/dev/full") if self == path and mode != "r" else self, *arguments, **named)

    Path.open = opened


@pytest.fixture
def disk():
    """Mounts a disk of so many bytes at a folder; skips where that is not allowed."""
    mounted = []

    def mount(folder, size):
        folder.mkdir(parents=True)
        command = "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a tmpfs" if shutil.which("mount") else "there is no mount")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_spares_the_checkpoint_of_before_and_the_run_goes_on_once_there_is_room(tmp_path, disk):
    train(tmp_path / "whole", *SMALL)
    used = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    disk(tmp_path / "run", used + 2**20)
    assert command(*SMALL, "trainer.steps=8", f"hydra.run.dir={tmp_path}/run").returncode == 0
    before, filler = weights(tmp_path / "run"), tmp_path / "run" / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(tmp_path / "run").free == 0
    os.truncate(filler, filler.stat().st_size - 16 * 1024)  # room for some lines, not for a checkpoint
    done = command(f"resume={tmp_path}/run", "trainer.steps=48")
    assert done.returncode == 1
    assert "last.pt: cannot be written (No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
    assert equal(weights(tmp_path / "run"), before)
    filler.unlink()
    again = command(f"resume={tmp_path}/run", "trainer.steps=48")
    assert again.returncode == 0, again.stderr
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


@pytest.mark.parametrize("part", ["tensorboard", "figures"])
def test_a_disk_too_small_for_what_a_run_can_do_without(tmp_path, disk, part):
    train(tmp_path / "whole", *SMALL)
    disk(tmp_path / "run" / part, 8192)
    done = command(*SMALL, f"hydra.run.dir={tmp_path}/run")
    assert (done.returncode, done.stderr) == (0, "")
    told = [line for line in done.stdout.splitlines() if "No space left on device" in line and part in line]
    assert len(told) == 1
    assert told[0].startswith("warning: ")
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


def test_little_memory_is_told_with_what_to_lower(tmp_path):
    little = partial(resource.setrlimit, resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
    done = command("model.hidden=[40000,40000]", "debug=fast", f"hydra.run.dir={tmp_path}/run", before=little)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vae-train: error: out of memory (")
    assert "lower trainer.batch_size, the width of the model" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
