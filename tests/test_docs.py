"""The documents keep their word: links lead somewhere, commands compose, mistakes get the lines that are shown."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.conftest import ROOT
from tests.documents import DOCUMENTS, anchors, commands, files, links, mistakes, write
from vae_cli.commands import compare
from vae_cli.commands.generate.app import validate as validate_generate
from vae_cli.commands.pack import SOURCE
from vae_cli.config import check_part, signatures, validate, validate_evaluate, words
from vae_cli.config.check import check
from vae_cli.config.commands import Export, Pack
from vae_cli.config.options import OFFERED
from vae_cli.config.words import CONF, OVERLAYS, one_line

named = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@named
def test_every_link_and_anchor_leads_somewhere(document):
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_reached_from_the_readme():
    readme = ROOT / "README.md"
    reached = {(ROOT / link.partition("#")[0]).resolve() for link in links(readme)}
    assert set(DOCUMENTS) - {readme} <= reached


@named
def test_every_benchmark_that_a_document_names_is_there(document):
    for name in re.findall(r"python -m (benchmarks\.\w+)", document.read_text()):
        assert find_spec(name), name


def test_the_readme_names_every_option_of_every_group():
    table = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "README.md").read_text(), re.M))
    for group in sorted({path.parent.name for path in (ROOT / "conf").glob("*/*.yaml")} - {"hydra", "task"}):
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"`{path.stem}`" in table[group], f"{group}={path.stem}"


def test_own_parts_names_what_each_constructor_is_offered():
    text = (ROOT / "docs" / "own_parts.md").read_text()
    rows = {group: re.findall(r"\w+", names) for group, names in re.findall(r"^\| `(\w+)` \| (`.*`) \|$", text, re.M)}
    assert rows == {group: list(names) for group, names in OFFERED.items() if names and group != "task"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with the parts that docs/own_parts.md makes."""
    write(files(ROOT / "docs" / "own_parts.md"), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "mine")
    signatures.forget()
    yield tmp_path
    signatures.forget()


@named
def test_every_command_composes(document, place, monkeypatch):
    checks = {"vae-train": _train, "vae-eval": _evaluate, "vae-generate": _generate, "vae-export": _export}
    checks |= {"vae-data": _pack, "vae-compare": lambda arguments: _compare(arguments, monkeypatch)}
    for name, arguments in commands(document) if document.name != "CONTRIBUTING.md" else ():  # its parts are new
        if not any(arguments in wrong for wrong in mistakes(document)):
            checks[name](arguments)


@named
def test_a_mistake_gets_the_line_that_is_shown(document):
    words.use("train")
    for arguments, line in mistakes(document):
        with pytest.raises(Exception) as error:  # noqa: PT011  ours, or one of Hydra's
            _train(arguments)
        assert one_line(error.value) == line


def _train(arguments):
    raw = _composed("train", arguments)
    validate({key: value for key, value in raw.items() if key not in OVERLAYS})


def _evaluate(arguments):
    validate_evaluate(_composed("evaluate", arguments))


def _generate(arguments):
    validate_generate(_composed("generate", arguments))


def _export(arguments):
    check(Export, _composed("export", arguments), "")


def _pack(arguments):
    assert arguments[0] == "pack"
    raw = _composed("pack", arguments[1:])
    check_part("data", {**raw, "data": {**raw["data"], **SOURCE}})
    check(Pack, {key: value for key, value in raw.items() if key != "data"}, "")


def _compare(arguments, monkeypatch):
    given = []
    monkeypatch.setattr(compare, "compare", lambda *arguments: given.append(arguments))
    monkeypatch.setattr(sys, "argv", ["vae-compare", *arguments])
    compare.main()
    assert given


def _composed(name, arguments):
    """Compose a command's settings in this process: of a sweep, those of its first job; paths stand for files."""
    given, folder = _settings(arguments)
    for key, _, value in (each.partition("=") for each in given):
        if key in ("data.path", "data.labels", "task.source") and re.fullmatch(r"[\w.]+", value):
            Path(value).touch()
    found = [f"hydra.searchpath=[file://{folder}]"] if folder else []
    with initialize_config_dir(CONF, version_base="1.3"):
        composed = compose(name, [*given, *found])
        return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)


def _settings(arguments):
    """Return the KEY=VALUE of a command, each with the first of its values, and the folder of --config-dir."""
    arguments, folder = list(arguments), None
    if "--config-dir" in arguments:
        at = arguments.index("--config-dir")
        folder = str(Path(arguments[at + 1]).absolute())
        del arguments[at : at + 2]
    flags = {each for each in arguments if "=" not in each}
    assert flags <= {"-m"}, flags
    given = [each for each in arguments if each not in flags and _installed(each)]
    if any(each.startswith("resume=") for each in given) and any(each.startswith("data.path=") for each in given):
        given.insert(0, "data=arrays")  # a run whose data have a path
    return [_first(each) if flags else each for each in given], folder


def _first(argument):
    override = OverridesParser.create().parse_override(argument)
    if not override.is_sweep_override():
        return argument
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()), '')}"


def _installed(argument):
    """Whether the launcher that an argument chooses, or sets, is installed."""
    ray = argument == "hydra/launcher=ray" or argument.startswith("+hydra.launcher.ray.")
    return not ray or find_spec("hydra_plugins.hydra_ray_launcher") is not None
