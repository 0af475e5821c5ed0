"""What the documents hold: links, headings, commands, and the files of their examples."""

import re
import shlex
from pathlib import Path

from tests.processes import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:\$ )?(?:\S*bin/)?(vae-\w+)(?: +(.*))?$")
RANKS = re.compile(r"^torchrun .* -m vae_cli\.commands\.train (.*)$")


def links(document: Path) -> list[str]:
    """Return the relative targets of links and pictures, each FILE, FILE#ANCHOR or #ANCHOR."""
    text = re.sub(r"`[^`]*`", "", _without_code(document.read_text()))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", _without_code(document.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(document: Path) -> list[tuple[str, list[str]]]:
    """Return each command of ours that a document shows, as its name and its arguments."""
    lines = document.read_text().replace("\\\n", " ").splitlines()
    inline = [f"    {each}" for line in lines for each in re.findall(r"`(vae-\w+ [^`]*=[^`]*)`", line)]
    found = []
    for line in [line for line in lines if line.startswith("    ") or line.startswith("vae-")] + inline:
        if match := COMMAND.match(line.strip()):
            found.append((match[1], shlex.split(match[2] or "", comments=True)))
        elif match := RANKS.match(line.strip()):
            found.append(("vae-train", shlex.split(match[1])))
    return found


def mistakes(document: Path) -> list[tuple[list[str], str]]:
    """Return the arguments of each command that a document shows to fail, and the line that it shows for it."""
    pairs = re.findall(r"^ +\$ vae-train (.*)\n +vae-train: error: (.*)$", document.read_text(), re.M)
    return [(shlex.split(arguments), line) for arguments, line in pairs]


def files(document: Path) -> dict[str, str]:
    """Return the files that a document's examples begin with `# FOLDER/FILE`, name → content."""
    return dict(re.findall(r"```(?:python|yaml)\n# (\S+/\S+)\n(.*?)```", document.read_text(), re.S))


def write(files: dict[str, str], folder: Path) -> None:
    """Write files below a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def _without_code(text: str) -> str:
    return re.sub(r"^( {4}|\t).*$", "", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
