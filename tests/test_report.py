"""report.html and TensorBoard: what a person sees of a finished run."""

import json
import math
import re
import shutil
import subprocess
import threading
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import html5lib
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import TINY, train
from vae_cli.data import Spec
from vae_cli.report import page, pictures
from vae_cli.report.console import Terminal
from vae_cli.training import diagnosis

EVIL = "<script src=http://evil.example/x.js></script><img src=x onerror=alert(1)>\x1b[31m"
CALLS_HOME = ("google", "gvt1.com")  # what the browser asks for itself, whatever it shows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    summary = train(folder, "trainer.epochs=30", "trainer.log_likelihood_samples=20", drawn=True)
    return folder, summary


def line(epoch, value):
    return {"epoch": epoch, "valid/elbo": value}


def test_a_curve_that_falls_is_called_overfitting_and_one_that_rises_not_converged():
    def found(values, settled=0.0):
        return [each.partition(":")[0] for each in diagnosis.warnings([*map(line, range(40), values)], settled)]

    level = [-100 - 50 * math.exp(-k) for k in range(40)]
    rising = [-150 + k for k in range(40)]
    falling = [-150 + min(k, 10) * 5 - max(0, k - 10) * 0.3 for k in range(40)]
    noisy = [value + (0.4 if k % 2 else -0.4) for k, value in enumerate(level)]
    assert found(level) == found(noisy) == []
    assert found(rising) == ["not converged"]
    assert found(falling) == ["overfitting"]
    assert found(rising, settled=35.0) == []  # too few validations since the KL weight settled
    assert diagnosis.warnings([], 0.0) == []
    lines = [line(k, v) | {"train/elbo": -k} for k, v in enumerate(falling)]
    assert diagnosis.warnings(lines, 0.0) == []  # the ELBO in training falls too: this is no overfitting
    lines = [each | {"train/loss": k} for k, each in enumerate(lines)]
    assert diagnosis.warnings(lines, 0.0)[0].startswith("training went astray")


CLIMBS = {
    "fast": lambda t: -100 - 50 * np.exp(-t / 2),
    "slow": lambda t: -100 - 50 * np.exp(-8 * t / len(t)),
    "none": lambda t: -100 + 0 * t,
}
FALLS = {  # 2 nats lost by the end: from a tenth, three and six tenths of the run on, or within a sixth of it
    "from 0.1": lambda t: np.clip((t / t[-1] - 0.1) / 0.9, 0, 1),
    "from 0.3": lambda t: np.clip((t / t[-1] - 0.3) / 0.7, 0, 1),
    "from 0.6": lambda t: np.clip((t / t[-1] - 0.6) / 0.4, 0, 1),
    "sudden": lambda t: np.clip((t / t[-1] - 0.5) * 6, 0, 1),
}


def noisy(curve, noise, correlation, rng):
    """A curve [n] with stationary noise AR(1) of a standard deviation."""
    steps = noise * math.sqrt(1 - correlation**2) * rng.normal(size=len(curve))
    wander = [noise * rng.normal()]
    for step in steps[1:]:
        wander.append(correlation * wander[-1] + step)
    return curve + np.array(wander)


def told(curve):
    return [each.partition(":")[0] for each in diagnosis.warnings([*map(line, range(len(curve)), curve.tolist())], 0.0)]


@pytest.mark.parametrize(("validations", "noise"), [(12, 0.5), (17, 0.5), (30, 0.15), (50, 0.5), (60, 1.0)])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_noise_about_a_level_raises_no_warning(validations, noise, correlation):
    rng, times = np.random.default_rng(0), np.arange(validations)
    raised = [bool(told(noisy(climb(times), noise, correlation, rng))) for climb in CLIMBS.values() for _ in range(50)]
    assert sum(raised) <= 0.05 * len(raised)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8, 0.9])
def test_a_fall_of_two_nats_is_found_among_autocorrelated_noise(correlation):
    rng, times = np.random.default_rng(0), np.arange(50)
    found = [
        told(noisy(CLIMBS["fast"](times) - 2 * fall(times), 0.3, correlation, rng)) == ["overfitting"]
        for fall in FALLS.values()
        for _ in range(30)
    ]
    assert sum(found) >= 0.8 * len(found)


@pytest.mark.parametrize("validations", [10, 17])
@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_falls_and_rises_of_short_curves_are_found(validations, noise):
    rng, times = np.random.default_rng(0), np.arange(validations)
    climb = -100 - 50 * np.exp(-25 * times / validations)
    for part in ("from 0.1", "from 0.3"):
        assert told(noisy(climb - 2 * FALLS[part](times), noise, 0.5, rng)) == ["overfitting"]
    assert told(noisy(-150 + 50 * times / validations, noise, 0.5, rng)) == ["not converged"]


def test_a_smooth_fall_from_the_first_validation_is_no_level():
    assert told(-100 - 0.05 * np.arange(40)) == ["overfitting"]
    assert told(-100 + 0.05 * np.arange(40)) == ["not converged"]


def test_few_validations_and_few_steps_are_judged_too():
    def found(key, *values, step=5000):
        lines = [{"epoch": k, "step": step * (k + 1) // len(values), key: value} for k, value in enumerate(values)]
        return [each.partition(":")[0] for each in diagnosis.warnings(lines, 0.0)]

    assert found("valid/elbo", -540.0, -300.0, -180.0) == ["not converged"]
    assert found("valid/elbo", -540.0, -140.0) == ["not converged"]
    assert found("valid/elbo", -540.0, -140.0, -139.5, -139.2) == found("valid/elbo", -100.0, -99.5) == []
    assert found("train/elbo", -540.0, -400.0, -350.0, -300.0, -260.0, -210.0) == ["not converged"]
    assert found("train/elbo", -540.0, -140.0, -130.0, -131.0, -129.0, -130.0) == []
    assert found("valid/elbo", -100.0, -100.0, step=180) == ["only 180 steps"]


def test_an_overfitting_run_says_so(tmp_path):
    small = ("data.limit_train=60", "data.binarize=threshold", "trainer.epochs=400", "trainer.batch_size=60")
    summary = train(tmp_path / "run", *small, "optimizer.lr=0.003", "trainer.log_likelihood_samples=0", drawn=True)
    assert summary["evaluated_epoch"] < 300
    warnings = json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"]
    assert any(each.startswith("overfitting: valid/elbo was best at epoch") for each in warnings)
    assert "overfitting: valid/elbo was best" in (tmp_path / "run" / "report.html").read_text()


def test_the_page_is_valid_and_holds_what_the_run_found(run):
    folder, summary = run
    text = (folder / "report.html").read_text()
    parser = html5lib.HTMLParser(strict=True)
    parser.parse(text)
    assert not parser.errors
    for name in ("test/elbo", "test/log_likelihood", "test/kl"):
        assert f"<b>{summary[name]:.2f}</b>" in text
    told = json.loads((folder / "summary.json").read_text())["warnings"]
    assert all(f"<li>{escape(each)}</li>" in text for each in told)
    assert text.count("<li>") == len(told)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) > 100
    assert {each for each in re.findall(r'(?:url\(#|href="#)([^")]+)', text)} <= set(ids)
    assert text.count("<svg") == 6
    assert text.count("data:image/png;base64,") >= 3
    assert "<td><code>model.latent_dim</code></td><td><code>20</code></td>" in text
    addresses = re.findall(r"(?:src|href)=\"([^\"]{0,40})", text)
    assert all(each.startswith(("data:", "#")) for each in addresses), addresses


def test_what_a_run_holds_stands_on_the_page_as_text(run, tmp_path):
    _, summary = run
    drawn = page.Drawn(curves=[], pictures=[(EVIL, "data:,")], kl="", kl_map=None, latent="", latent_note=EVIL)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(json.dumps([EVIL]))
    heading = page.Heading(EVIL, EVIL, "test", summary | {"measure": EVIL}, {EVIL: EVIL})
    text = page.write(tmp_path, heading, [EVIL], drawn).read_text()
    assert "<script" not in text
    assert "<img src=x" not in text
    assert text.count("&lt;script") >= 8
    assert "\x1b" not in text
    assert "\\x1b" in text


def test_class_names_stand_in_the_latent_figure_as_text():
    from vae_cli.report import figures

    with figures.for_a_page():
        labels = torch.zeros(9, dtype=torch.long)
        text = figures.svg(figures.scatter(torch.randn(9, 2), labels, [EVIL], ("a", "b")), "x")
    assert "<script" not in text
    assert "&lt;script" in text
    assert figures.INK not in text
    assert "currentColor" in text


NAMES = ["<$10_000", "$10_000_$20_000", r"\$5$", "_hidden", "caf\udce9", "endless" * 100, "\x1b[31mred\nline"]


def test_class_names_of_any_letters_cost_no_figure(tmp_path):
    y = np.array(NAMES * 20)
    np.savez(tmp_path / "named.npz", x=np.random.default_rng(0).integers(0, 2, (len(y), 6, 6)), y=y)
    own = ["data=arrays", f"data.path={tmp_path}/named.npz", "conditional=label", "likelihood=bernoulli"]
    train(tmp_path / "run", *own, "model.latent_dim=2", "trainer.steps=2", drawn=True)
    warnings = json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"]
    assert [each for each in warnings if "could not be written" in each] == []
    assert (tmp_path / "run" / "figures" / "class_samples.png").is_file()
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "run" / "report.html").read_text())
    escaped = r"\x1b[31mred\nline"
    cut = ("endless" * 4)[:23] + "…"
    assert {"&lt;$10_000", "$10_000_$20_000", r"\$5$", " _hidden", r"caf\udce9", cut, escaped} <= set(shown)
    (table,) = (tmp_path / "run" / "tensorboard").glob("*/codes/metadata.tsv")
    lines = table.read_text().splitlines()
    assert escaped in lines
    assert len(lines) == len((table.parent / "tensors.tsv").read_text().splitlines())


def test_a_setting_or_a_measure_with_dollars_is_drawn(tmp_path):
    from vae_cli.report import figures

    figures.rate_distortion([(1.0, 2.0, "path=$x_$y"), (2.0, 3.0, "caf\udce9=" + "9" * 999)], tmp_path / "a.png")
    figures.over_setting([("", [(1.0, [2.0])])], "own.$x_$", "test/$x_$", tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width < 1500


def test_what_the_terminal_shows_stands_there_letter_by_letter(tmp_path, capsys):
    terminal, odd = Terminal(tmp_path / "train.log"), "runs/[/x]/[red]:cat:"
    summary = {"test/elbo": -1.0, "test/[/kl]": 1.0}
    terminal.numbers_of(summary, "test", f"{odd}/numbers")
    terminal.table(summary, f"{odd}/table")
    terminal.line(f"{odd}/caf\udce9")
    shown = capsys.readouterr().out
    assert all(each in shown for each in (f"{odd}/numbers", f"{odd}/table", rf"{odd}/caf\udce9", "[/kl]"))
    assert (tmp_path / "train.log").read_text() == f"{odd}/caf\\udce9\n"


@pytest.mark.parametrize("extra", [
    ["model=ladder", "latent.below=[2]"], ["data.shape=[7]", "likelihood=gaussian"],
    ["conditional=label", "model.latent_dim=1"], ["prior=flow", "posterior=flow"],
])  # fmt: skip
def test_any_run_has_a_page(tmp_path, extra):
    train(tmp_path, *TINY, *extra, drawn=True)
    text = (tmp_path / "report.html").read_text()
    html5lib.HTMLParser(strict=True).parse(text)
    assert text.count("<svg") == (9 if "data.shape=[7]" in extra else 6)  # a table's examples are drawn as well


def test_two_dimensions_of_codes_are_those_of_largest_variance():
    torch.manual_seed(0)
    z = torch.randn(500, 5) * torch.tensor([0.1, 3.0, 0.1, 2.0, 0.1])
    points, names = pictures.plane(z)
    assert points.var(0).tolist() == pytest.approx([z[:, 1].var().item(), z[:, 3].var().item()], rel=0.02)
    share = z[:, 1].var() / z.var(0).sum()
    assert f"({share:.0%} of" in names[0]
    assert torch.equal(pictures.plane(z[:, :2])[0], z[:, :2])


def test_ten_thousand_classes_are_one_drawing():
    """Each call of matplotlib's scatter costs 12 ms, which 10,000 classes made two minutes of."""
    from vae_cli.report import figures

    labels = torch.randint(10_000, (2000,))
    axes = figures.scatter(torch.randn(2000, 2), labels, [str(k) for k in range(10_000)], ("a", "b")).axes[0]
    assert len(axes.collections) == 1
    assert len(np.unique(axes.collections[0].get_facecolors(), axis=0)) > 100
    assert axes.get_legend() is None
    few = figures.scatter(torch.randn(9, 2), torch.arange(9) % 3, ["a", "b", "c"], ("a", "b")).axes[0]
    assert [text.get_text() for text in few.get_legend().get_texts()] == ["a", "b", "c"]


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_grid_rules_its_pictures_off_and_keeps_them_small(value):
    spec = Spec((256, 192), 256, 0.0, 1.0)
    drawn = pictures.grid(torch.full((2, 3, 256, 192), value), spec)
    assert drawn.shape == (2 * 128 + 5, 3 * 96 + 2 * 5, 3)
    between, tile = drawn[128, 0].float(), drawn[0, 0].float()
    assert (between - tile).abs().max() > 50  # a grey tile has a visible border as well
    assert pictures.grid(torch.rand(1, 1, 8, 8), Spec((8, 8), 256, 0.0, 1.0)).shape == (56, 56, 3)


def test_what_is_shown_of_sorted_examples_is_a_mix():
    y = torch.arange(10).repeat_interleave(50)
    assert sorted(y[pictures.spread(500, y, 16)].bincount().tolist()) == [1] * 4 + [2] * 6
    assert pictures.spread(500, None, 5).tolist() == [0, 125, 250, 374, 499]
    assert sorted(pictures.spread(4, torch.tensor([2, 2, 0, 2]), 9).tolist()) == [0, 1, 2, 3]
    rare = torch.tensor([0] * 98 + [1, 2])
    assert set(rare[pictures.spread(100, rare, 3)].tolist()) == {0, 1, 2}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A finished run on a table whose columns have names, and its folder."""
    folder, rng = tmp_path_factory.mktemp("table"), np.random.default_rng(0)
    x = rng.normal(size=(200, 3)) * [15, 0.2, 9000] + [50, 1.7, 25000]
    np.savez(folder / "x.npz", x=x.astype("float32"), features=["age", "height", "$income"])
    own = ["data=arrays", f"data.path={folder}/x.npz", "likelihood=gaussian", "model.latent_dim=2", "trainer.steps=9"]
    train(folder / "run", *own, drawn=True)
    return folder / "run"


def test_a_tables_figures_name_its_features_and_their_scales(table):
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", (table / "report.html").read_text())
    for name, scale in (
        ("age", r"(4|5)\d[\d.]* ± 1\d[\d.]*"),
        ("height", r"1\.\d+ ± 0\.\d+"),
        ("$income", r"2\d,\d00 ± \d,\d+"),
    ):
        assert shown.count(name) == 3  # against the data, samples, traversals
        assert any(re.fullmatch(scale, each) for each in shown), scale
    assert {"data", "reconstruction", "standard deviations"} <= set(shown)
    for name in ("reconstructions", "samples"):
        with Image.open(table / "figures" / f"{name}.png") as drawn:
            assert np.asarray(drawn.convert("HSV"))[..., 1].max() > 100  # no grey noise


def test_the_test_set_stands_in_the_first_column_of_the_page(table):
    head = re.search(r"<thead>.*?</thead>", (table / "report.html").read_text(), re.DOTALL)
    assert head is not None
    assert re.findall(r'"col">([^<]*)<', head[0])[1:] == ["test", "valid", "train"]


def test_curves_have_colours_of_their_own_on_dark_pages(table):
    text = (table / "report.html").read_text()
    assert len(set(re.findall(r"--blue: (#\w+)", text))) == len(set(re.findall(r"--orange: (#\w+)", text))) == 2
    assert "stroke: var(--blue)" in text
    assert "stroke: var(--orange)" in text


def test_the_board_shows_options_and_results_alone(table):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(table / "tensorboard")).Reload()
    assert "test/elbo" in events.Tags()["scalars"]
    assert not [tag for tag in events.Tags()["scalars"] if tag.endswith(("_samples", "_examples", "_bound"))]
    contents = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    chosen = HParamsPluginData.FromString(contents).session_start_info.hparams
    assert chosen["model"].string_value == "mlp"
    assert chosen["data"].string_value == "arrays"
    assert not [key for key in chosen if "_target_" in key]


def test_settings_are_marked_in_powers_of_ten_and_labels_stay_inside(tmp_path, monkeypatch):
    from vae_cli.report import figures

    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    figures.over_setting(
        [("", [(v, [1.0]) for v in (1e-4, 3.3e-4, 1e-2)])], "optimizer.lr", "test/elbo", tmp_path / "a.png"
    )
    figures.over_setting([("", [(v, [1.0]) for v in (4, 8, 64)])], "model.latent_dim", "test/elbo", tmp_path / "b.png")
    runs = [(float(k), 90.0 - k, f"latent_dim={k}, optimizer.lr=0.00{k}12345, batch_size=128") for k in range(9)]
    figures.rate_distortion(runs, tmp_path / "c.png")
    assert drawn[0].axes[0].xaxis.get_transform().base == 10
    assert [text.get_text() for text in drawn[1].axes[0].get_xticklabels()] == ["4", "8", "64"]
    figure = drawn[2]
    figures.FigureCanvasAgg(figure).draw()
    inside = figure.axes[0].get_window_extent()
    for label in figure.axes[0].texts:
        extent = label.get_window_extent()
        assert inside.x0 <= extent.x0 <= extent.x1 <= inside.x1
        assert inside.y0 <= extent.y0 <= extent.y1 <= inside.y1


def test_sprites_are_square_and_within_the_unit_range():
    spec = Spec((3, 4, 6), None, -1.0, 1.0)
    found = pictures.sprites(torch.rand(5, 3, 4, 6) * 2 - 1, spec)
    assert found.shape == (5, 3, 6, 6)
    assert 0.0 <= found.min() <= found.max() <= 1.0
    assert pictures.sprites(torch.rand(5, 7), Spec((7,), None, 0.0, 1.0)) is None


class Recorder(BaseHTTPRequestHandler):
    """A proxy that lets nothing through and remembers what was asked of it."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        self.send_error(404)

    do_CONNECT = do_POST = do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("name", "size", "flags"), [
    ("desktop", (1280, 900), []), ("phone", (390, 844), []), ("dark", (1280, 900), ["--force-dark-mode"]),
])  # fmt: skip
def test_a_browser_shows_the_page_without_network(run, tmp_path, name, size, flags):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    Recorder.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    shot = tmp_path / f"{name}.png"
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/u",
         f"--proxy-server=127.0.0.1:{server.server_port}", "--proxy-bypass-list=<-loopback>",
         "--disable-background-networking", "--disable-component-update", "--no-first-run", *flags,
         f"--window-size={size[0]},{size[1]}", f"--screenshot={shot}", f"file://{run[0]}/report.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    assert [each for each in Recorder.asked if not any(own in each for own in CALLS_HOME)] == []
    image = Image.open(shot).convert("L")
    assert image.size == size
    corner, spread = image.getpixel((2, 2)), image.getextrema()
    assert (corner < 60) if name == "dark" else (corner > 200)
    assert spread[1] - spread[0] > 150
