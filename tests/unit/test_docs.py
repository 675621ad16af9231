"""The documentation is true: its commands exist, its options parse, and every setting is in its table."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from producer.cli.main import cli
from producer.planning.options import RECIPE_OPTIONS
from producer.planning.presets import PRESETS
from workers.contract.recipe import METHODS, Recipe
from workers.contract.recipe import options as recipe_options
from workers.contract.settings import VARIABLES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DEPLOY_README = (ROOT / "deploy" / "README.md").read_text()
RENDERING_README = (ROOT / "workers" / "rendering" / "README.md").read_text()
READMES = [
    ROOT / "README.md",
    *(path for folder in ("deploy", "producer", "tests", "workers") for path in (ROOT / folder).rglob("README.md")),
]
HELP_EPILOG = cli.epilog or ""


def _commands(text: str) -> list[str]:
    """Every ``filterfarm ...`` line of a text, without its trailing comment."""
    found = re.findall(r"^\s*(filterfarm [^\n#]*)", text, re.MULTILINE)
    return sorted({re.split(r" {3,}", line)[0].strip() for line in found})


@pytest.mark.parametrize(
    "line", sorted({*_commands(HELP_EPILOG), *(line for path in READMES for line in _commands(path.read_text()))})
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


def test_every_setting_is_in_the_table_of_deploy() -> None:
    for variable in VARIABLES.values():
        assert re.search(rf"^\| `{variable}`", DEPLOY_README, re.MULTILINE), variable


def test_every_command_is_taught_by_help_or_readme() -> None:
    taught = {shlex.split(line)[1] for line in [*_commands(README), *_commands(HELP_EPILOG)]}
    assert taught == set(cli.commands)


def _shown_help(option: click.Option) -> str:
    """The help text of an option, without its default and range."""
    return re.sub(r"\[[^]]*]", "", option.help or "").strip()


def test_every_command_and_option_explains_itself() -> None:
    # Given every option of every command, those that are generated from the recipe's fields included
    options = {
        (name, option.opts[-1]): option
        for name, command in cli.commands.items()
        for option in command.params
        if isinstance(option, click.Option)
    }
    assert len(options) > 90

    # Then command and option have a sentence of help, besides their default and range
    assert not [name for name, command in cli.commands.items() if not (command.help or "").strip().endswith(".")]
    assert not [place for place, option in options.items() if len(_shown_help(option)) < 10]


@pytest.mark.parametrize("command", ["run", "plan", "submit"])
def test_every_recipe_field_has_an_option_with_its_help_and_default(command: str) -> None:
    # Given the options of a command
    options = {flag: entry for entry in cli.commands[command].params for flag in entry.opts}

    # Then each field of the recipe is set by one of them, which shows the field's help and default
    assert set(recipe_options()) == set(Recipe.model_fields)
    for name, option in recipe_options().items():
        entry, default = options[option.flag], Recipe.model_fields[name].default
        assert isinstance(entry, click.Option)
        assert (entry.help or "").startswith(option.help), name
        if isinstance(default, str | int | float) and not isinstance(default, bool):
            assert f"default: {default}" in (entry.help or ""), name


def test_help_shows_the_job_options_in_groups() -> None:
    # When help is asked for
    result = CliRunner().invoke(cli, ["run", "--help"], prog_name="filterfarm")

    # Then the groups are shown in order, with options of each below its name
    assert result.exit_code == 0
    parts = ["Model and layers", "--weights", "Objective", "--negative", "Method", "--steps"]
    parts += ["Picture", "--size", "Sheet", "--grid", "This machine", "--data"]
    places = [re.search(rf"^[╭│|]?[─ ]*{part}", result.output, re.MULTILINE) for part in parts]
    assert all(places), result.output
    assert [place.start() for place in places if place] == sorted(place.start() for place in places if place)


def test_help_loads_none_of_the_heavy_libraries() -> None:
    # Given a fresh interpreter
    code = (
        "import sys; from producer.cli.main import cli; cli.main(['run', '--help'], standalone_mode=False); "
        "print({'torch', 'numpy', 'celery', 'kombu', 'redis', 'boto3', 'PIL'} & set(sys.modules))"
    )

    # When it shows the help
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    # Then none of them is loaded: together they take more than half a second
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_readme_leads_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", path.read_text()):
        if not target.startswith("http"):
            page = path.parent / target if target else path
            assert page.exists(), target
            if anchor:
                page = page / "README.md" if page.is_dir() else page
                assert anchor in _anchors(page.read_text()), f"{target}#{anchor}"


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them of plain words."""
    return {title.strip().lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def test_every_test_in_the_table_of_faults_exists() -> None:
    # Given the table's rows, which name files and tests of these, some shortened by dots
    rows = re.findall(r"^\|.*\|$", (ROOT / "tests" / "README.md").read_text(), re.MULTILINE)
    named = 0
    for row in rows:
        source = ""
        for name in re.findall(r"`([\w/]+\.py|test_\w+(?:\.\.\.)?)`", row):
            # When a file is named, then it exists; a test after it is one of the file's
            if name.endswith(".py"):
                source = (ROOT / "tests" / name).read_text()
            else:
                end = "" if name.endswith("...") else r"\("
                assert re.search(rf"^ *def {name.removesuffix('...')}{end}", source, re.MULTILINE), name
                named += 1
    assert named > 20


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_presets_is_the_code_s(name: str) -> None:
    # Given a preset's row
    row = re.search(rf"^\| `{name}` \| `(--[^`]*)` \|", RENDERING_README, re.MULTILINE)
    assert row is not None

    # When its options are parsed
    context = cli.commands["run"].make_context("run", ["vgg16", *shlex.split(row[1])])

    # Then they are the preset's, and no others
    given = {key: value for key, value in context.params.items() if key in RECIPE_OPTIONS and value is not None}
    assert given == PRESETS[name]


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_methods_has_the_code_s_defaults(method: str) -> None:
    row = re.search(rf"^\| `{method}`(?: \(default\))? \|.*?\| (\d+); ([\d.]+) \|", RENDERING_README, re.MULTILINE)
    assert row is not None
    assert {"steps": int(row[1]), "step_size": float(row[2])} == METHODS[method]


def test_the_root_readme_is_read_in_three_minutes() -> None:
    assert len(README.encode()) < 7000
