"""The house: what stands where, which way imports run, where a setting is at home."""

import ast
from pathlib import Path

import pytest

from tests.processes import ROOT
from vae_cli.config.options import GROUPS, OFFERED, SHARED, targets
from vae_cli.config.signatures import signature
from vae_cli.config.words import CONF

PACKAGE = ROOT / "vae_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
MATHEMATICS = ("model", "latent", "likelihood", "prior", "posterior", "distribution", "kl", "lr_schedule", 
               "conditional", "optimizer", "vae", "objective")  # fmt: skip
FLOORS = (  # from the ground up: a module imports from its own floor and those below
    ("batch",), ("system",), ("config",), MATHEMATICS[:-2], ("vae",), ("objective", "data"), ("parts",), ("finished",),
    ("metrics",), ("report",), ("api",), ("training",), ("commands",), ("train",),
)  # fmt: skip
TOGETHER = {  # options whose function stands in a module of its own name for several
    "data": {name: "vision" for name in ("mnist", "fashion_mnist", "kmnist", "qmnist", "emnist", "omniglot", "cifar10",
                                         "svhn", "celeba")},
}  # fmt: skip


def named(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path, *, lazily: bool = True) -> set[str]:
    """Return the modules of vae_cli that a module imports; `lazily`: within functions as well."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if lazily else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "vae_cli":
            found |= {_module(node.module, each.name) for each in node.names}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names if each.name.partition(".")[0] == "vae_cli"}
    return found


def _module(package: str, name: str) -> str:
    inner = ROOT.joinpath(*package.split("."), f"{name}.py")
    return f"{package}.{name}" if package == "vae_cli" or inner.is_file() else package


def floor(module: str) -> int | None:
    part = module.split(".")[1] if "." in module else ""
    return next((k for k, names in enumerate(FLOORS) if part in names), None)


def test_no_file_is_longer_than_300_lines_and_the_root_tells_the_story():
    long = {named(path): n for path in MODULES if (n := len(path.read_text().splitlines())) > 300}
    assert not long
    assert len([path for path in PACKAGE.glob("*.py") if path.stem != "__init__"]) <= 10


@pytest.mark.parametrize("path", [path for path in MODULES if floor(named(path)) is not None], ids=named)
def test_imports_run_downward(path):
    own = floor(named(path))
    assert not {other for other in imported(path) if (floor(other) or 0) > own}


def test_the_mathematics_knows_no_loop_no_processes_and_no_metrics():
    allowed = ("vae_cli.batch", "vae_cli.config.types", "vae_cli.system.errors", "vae_cli.system.randomness")
    for path in MODULES:
        module = named(path)
        if module.split(".")[1:2] and module.split(".")[1] in MATHEMATICS:
            foreign = {other for other in imported(path) if other.split(".")[1] not in MATHEMATICS}
            assert foreign <= set(allowed), module


@pytest.mark.parametrize("group", GROUPS)
def test_an_option_and_its_part_bear_one_name(group):
    for path in (Path(CONF) / group).glob("*.yaml"):
        target = next((line.split()[1] for line in path.read_text().splitlines() if line.startswith("_target_")), None)
        if target is None:  # another name of other options
            continue
        module = target.rpartition(".")[0]
        one_module = (PACKAGE / f"{group}.py").is_file()
        wanted = group if one_module else f"{group}.{TOGETHER.get(group, {}).get(path.stem, path.stem)}"
        assert module == f"vae_cli.{wanted}"


@pytest.mark.parametrize("group", GROUPS)
def test_a_setting_has_two_homes(group):
    """Its value stands in YAML alone, its type in the signature alone."""
    import yaml

    for path in sorted((Path(CONF) / group).glob("*.yaml")):
        values = yaml.safe_load(path.read_text())
        if not (target := values.get("_target_")):
            continue
        own = signature(target)
        shared = signature(SHARED[group]).parameters if group in SHARED else {}
        assert own.closed, target
        typed = {name for name in own.parameters if name not in OFFERED[group]} | set(shared)
        assert set(values) - {"_target_", "defaults"} <= typed, target
        with_default = {
            name for name, each in own.parameters.items() if not each.required and name not in OFFERED[group]
        }
        assert with_default <= {"test"}, f"{target} repeats a default"


def test_every_part_of_ours_is_an_option():
    assert all(targets(group) for group in GROUPS)
