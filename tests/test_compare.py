"""vae-compare: runs side by side, and a refusal where their numbers mean different things."""

import csv
import json
import math
from dataclasses import replace

import pytest
import yaml

from tests.conftest import command
from vae_cli.commands.compare import compare, find, group, missing, varying
from vae_cli.report import figures
from vae_cli.system.errors import UserError


def fake(folder, numbers, measure="log-mass of binary values", **settings):
    """A run folder with no more in it than a comparison reads."""
    (folder / ".hydra").mkdir(parents=True)
    raw = {"data": {"_target_": "vae_cli.data.digits.digits", "seed": 0}, "seed": 1, "model": {"latent_dim": 2}}
    for key, value in settings.items():
        part, _, name = key.partition("__")
        raw = {**raw, part: {**raw.get(part, {}), name: value}} if name else {**raw, part: value}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(raw))
    (folder / "summary.json").write_text(json.dumps({"measure": measure, **numbers}))
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Three sizes of latent space, two seeds each."""
    for job, (size, seed) in enumerate((s, k) for s in (2, 8, 32) for k in (1, 2)):
        elbo = -30.0 + size / 10 + seed / 100
        numbers = {"test/elbo": elbo, "test/kl": float(size), "test/reconstruction": elbo + size}
        fake(tmp_path / "sweep" / str(job), numbers, seed=seed, model__latent_dim=size)
    return tmp_path / "sweep"


def test_seeds_are_pooled_and_rows_sorted_best_first(sweep, capsys):
    rows = compare([str(sweep)])
    assert [row.settings["model.latent_dim"] for row in rows] == [32, 8, 2]
    assert [len(row.runs) for row in rows] == [2, 2, 2]
    assert rows[0].mean("test/elbo") == pytest.approx(-26.785)
    shown = capsys.readouterr().out
    assert "-26.785 ± 0.007" in shown
    assert "latent_dim" in shown
    lines = list(csv.DictReader((sweep / "comparison.csv").read_text().splitlines()))
    assert len(lines) == 6
    assert {line["model.latent_dim"] for line in lines} == {"2", "8", "32"}
    for name in ("rate_distortion", "test_elbo_by_model_latent_dim"):
        assert (sweep / f"{name}.png").stat().st_size > 5000


def test_a_metric_may_be_chosen(sweep):
    assert compare([str(sweep)], "test/kl")[0].settings["model.latent_dim"] == 32
    with pytest.raises(UserError, match=r"--metric=test/elb: no run has it; did you mean test/elbo\?"):
        compare([str(sweep)], "test/elb")


def test_an_evaluation_counts_more_than_the_summary(sweep):
    (sweep / "0" / "evaluation.json").write_text(json.dumps({"test/elbo": 0.0}))
    assert compare([str(sweep)])[0].settings["model.latent_dim"] == 2


def test_what_cannot_be_compared_is_not_ranked(sweep, tmp_path):
    grey = fake(tmp_path / "grey", {"test/elbo": 3.0}, measure="log-density of real values")
    with pytest.raises(
        UserError, match=r"cannot be compared .log-mass of binary values and log-density of real values"
    ):
        compare([str(sweep), str(grey)])
    other = fake(tmp_path / "other", {"test/elbo": 3.0}, data__seed=7)
    with pytest.raises(UserError, match=r"cannot be compared .0 and 7"):
        compare([str(sweep / "0"), str(other)])


def test_single_runs_leave_no_files(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compare([str(sweep / "0"), str(sweep / "2")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sweep"]
    assert not (sweep / "0" / "comparison.csv").exists()


def test_what_varies_is_found(sweep):
    runs = find(sweep)
    assert [run.folder.name for run in runs] == list("012345")
    assert set(varying(runs)) == {"seed", "model.latent_dim"}
    assert len(group(runs)) == 3


def test_errors_are_one_line(tmp_path):
    done = command(tmp_path, module="vae_cli.commands.compare")
    assert done.returncode == 1
    assert done.stderr.startswith("vae-compare: error: ")
    assert done.stderr.count("\n") == 1


def test_equal_settings_are_one_row_and_a_run_counts_once(sweep):
    runs = find(sweep)
    whole = replace(runs[0], settings=runs[0].settings | {"kl.weight": 1})
    broken = replace(runs[1], settings=runs[1].settings | {"kl.weight": 1.0})
    assert "kl.weight" not in varying([whole, broken])
    rows = compare([str(sweep), str(sweep / runs[0].folder.name)])
    assert sum(len(row.runs) for row in rows) == len(runs)


def test_runs_that_lack_the_number_come_last_and_seeds_that_have_it_are_counted(tmp_path, capsys):
    kinds = {1: (None, None), 2: (-30.0, None, -32.0), 3: (math.nan, 10**400, -20.0), 4: (math.inf,)}
    for weight, values in kinds.items():
        for seed, value in enumerate(values):
            numbers = {"test/elbo": value, "test/kl": 1.0}
            fake(tmp_path / f"{weight}-{seed}", numbers, seed=seed, kl__weight=weight)
    rows = compare([str(tmp_path)])
    assert [row.settings["kl.weight"] for row in rows] == [3, 2, 1, 4]
    assert [row.having("test/elbo") for row in rows] == ["1 of 3", "2 of 3", "0 of 2", "0 of 1"]
    shown = capsys.readouterr().out
    assert "2 of 3" in shown
    assert "1.000 ± 0.000 (3)" in shown  # of another number: of all three
    lines = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert sorted(line["test/elbo"] for line in lines) == ["", "", "", "", "", "", "-20.0", "-30.0", "-32.0"]


@pytest.mark.parametrize("metric", ["test/kl", "test/posterior_gap"])
def test_what_lacks_the_number_comes_last_whichever_is_better(tmp_path, metric):
    for weight, value in enumerate((3.0, None, 5.0)):
        fake(tmp_path / str(weight), {metric: value}, kl__weight=weight)
    assert compare([str(tmp_path)], metric)[-1].settings["kl.weight"] == 1


def test_settings_and_measures_of_any_letters_are_shown(tmp_path, capsys):
    for odd in ("[/red]", "[bold]", ":cat:", "caf\udce9", "$x_$y"):
        fake(tmp_path / f"a{ord(odd[1])}", {"test/elbo": 1.0}, measure="[/x] :cat:", model__name=odd)
    compare([str(tmp_path)])
    shown = capsys.readouterr().out
    assert all(each in shown for each in ("[/red]", "[bold]", ":cat:", r"caf\udce9", "$x_$y", "test: [/x] :cat:"))


def test_odd_numbers_and_settings_are_no_traceback(tmp_path):
    for job, value in enumerate((1e308, -1e308, 5e-324)):
        fake(tmp_path / "large" / str(job), {"test/elbo": value, "test/kl": value, "test/reconstruction": value})
    for job, place in enumerate((math.nan, 10**400, 1e308, -1e308)):
        fake(tmp_path / "odd" / str(job), {"test/elbo": 1.0}, kl__weight=place)
    for name in ("large", "odd"):
        compare([str(tmp_path / name)])
    deep = fake(tmp_path / "deep", {})
    (deep / "summary.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"deep/summary\.json: cannot be read"):
        compare([str(deep)])


def test_jobs_that_failed_or_are_not_finished_are_told(sweep, capsys):
    assert missing(sweep) == []
    (sweep / "10").mkdir()
    (sweep / "10" / "error.txt").write_text("kl.weight=-1: at least 0 \x1b[31mis allowed\nTraceback …\n")
    fake(sweep / "9", {})
    (sweep / "9" / "summary.json").unlink()
    (sweep / "2" / "error.txt").write_text("out of memory\n")  # as it went on with more epochs
    compare([str(sweep)])
    assert capsys.readouterr().out.split(f"{sweep}: ")[1].splitlines()[:4] == [
        "3 of 8 jobs failed or are not finished",
        f"{sweep}/2: out of memory",
        f"{sweep}/9: not finished",
        rf"{sweep}/10: kl.weight=-1: at least 0 \x1b[31mis allowed",
    ]


def test_a_sweep_whose_jobs_all_failed_says_why(tmp_path):
    for job in range(30):
        (tmp_path / str(job)).mkdir()
        (tmp_path / str(job) / "error.txt").write_text("kl.weight=-1: at least 0 is allowed\n")
    done = command(tmp_path, module="vae_cli.commands.compare")
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert lines[1] == f"{tmp_path}: 30 of 30 jobs failed or are not finished"
    assert lines[2] == f"{tmp_path}/0: kl.weight=-1: at least 0 is allowed"
    assert lines[-1] == "… and 10 more"


def test_a_curve_joins_only_runs_with_the_same_other_settings(tmp_path, monkeypatch):
    """The objectives differ, and so do the numbers by far: one line through all would be no curve of anything."""
    for job, (objective, size) in enumerate((name, size) for name in ("ELBO", "IWAE") for size in (2, 8)):
        elbo = size - 100.0 * (objective == "IWAE")
        fake(tmp_path / str(job), {"test/elbo": elbo}, objective___target_=objective, model__latent_dim=size)
    drawn = {}
    monkeypatch.setattr(figures, "over_setting", lambda curves, key, metric, path: drawn.update({key: curves}) or path)
    compare([str(tmp_path)])
    assert {key: dict(curves) for key, curves in drawn.items()} == {
        "model.latent_dim": {
            "objective=ELBO": [(8.0, [8.0]), (2.0, [2.0])],
            "objective=IWAE": [(8.0, [-92.0]), (2.0, [-98.0])],
        }
    }


def test_mutual_information_at_its_bound_is_marked(tmp_path, capsys):
    for weight, bound in ((1, 3.05), (2, 9.0)):
        numbers = {"test/elbo": 1.0, "test/mutual_information": 3.0, "test/mutual_information_bound": bound}
        fake(tmp_path / str(weight), numbers, kl__weight=weight)
    compare([str(tmp_path)])
    shown = [line for line in capsys.readouterr().out.splitlines() if "3.000" in line]
    assert sorted("≥ 3.000" in line for line in shown) == [False, True]
