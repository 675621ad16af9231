"""The documentation is true: its commands exist, its options parse, and every setting is in its table."""

import re
import shlex
from pathlib import Path

import click
import pytest

from producer.cli.main import cli
from workers.contract.settings import VARIABLES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DEPLOY_README = (ROOT / "deploy" / "README.md").read_text()
HELP_EPILOG = cli.epilog or ""


def _commands(text: str) -> list[str]:
    """Every ``filterfarm ...`` line of a text, without its trailing comment."""
    found = re.findall(r"^\s*(filterfarm [^\n#]*)", text, re.MULTILINE)
    return sorted({re.split(r" {3,}", line)[0].strip() for line in found})


@pytest.mark.parametrize(
    "line", [*_commands(README), *_commands(HELP_EPILOG), *_commands((ROOT / "deploy/README.md").read_text())]
)
def test_every_documented_command_parses(line: str) -> None:
    # Given a command as documented
    name, *arguments = shlex.split(line)[1:]
    command = cli.commands[name]

    # When it is parsed, which runs nothing
    context = command.make_context(name, arguments, resilient_parsing=False)

    # Then every option and argument was understood
    assert context.params is not None


def test_the_demo_of_the_makefile_parses() -> None:
    # Given what make demo runs
    match = re.search(r"^DEMO = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert match is not None

    # When it is parsed
    context = cli.commands["run"].make_context("run", shlex.split(match[1]))

    # Then it names the network whose weights come as a package
    assert context.params["model"] == "efficientnet_lite0"


def test_every_setting_is_in_the_readmes_table() -> None:
    for variable in VARIABLES.values():
        assert re.search(rf"^\| `{variable}`", README, re.MULTILINE), variable


def test_every_command_is_taught_by_help_or_readme() -> None:
    taught = {shlex.split(line)[1] for line in [*_commands(README), *_commands(HELP_EPILOG)]}
    assert taught == set(cli.commands)


def test_every_command_and_option_explains_itself() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
