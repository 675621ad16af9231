"""The ``filterfarm`` command. Data goes to standard output, everything else to standard error."""

import os
import sys

import rich_click as click
from click import HelpFormatter

from producer.cli import farm_commands, job_commands, picture_commands
from workers.contract.errors import ExitCode, FilterfarmError

_EPILOG = """Examples:
  filterfarm run efficientnet_lite0 --layers 'conv_stem,conv_head' --filters 0-31
  filterfarm run vgg16 --layers block1_conv1 --filters 0-63 --size 64 --grid 8x8 --margin 5
  filterfarm layers vgg16
  filterfarm plan inception_v3 --size 299
  filterfarm gallery                  shows the pictures in the browser
  filterfarm quality JOB              measures the quality of its pictures

On a fleet, with FILTERFARM_BROKER_URL, FILTERFARM_BUCKET and the AWS variables set:
  filterfarm worker --all-gpus        on every GPU machine
  filterfarm collector                once, anywhere
  filterfarm submit vgg16 --wait      from your desk
  filterfarm gallery JOB              while it runs, and afterwards
  filterfarm fetch JOB pictures/      only what changed
"""


#: Groups of commands, in the order of ``--help``.
_PANELS = {
    "Jobs": (
        job_commands.run,
        job_commands.submit,
        job_commands.plan,
        job_commands.layers,
        farm_commands.status,
        farm_commands.watch,
        farm_commands.cancel,
    ),
    "Pictures": (picture_commands.gallery, picture_commands.fetch, picture_commands.quality),
    "Machines": (farm_commands.worker, farm_commands.collector, farm_commands.doctor),
}


class _Group(click.RichGroup):
    """Prints its epilog verbatim; rich-click would reflow the examples."""

    def format_epilog(self, ctx: click.Context, formatter: HelpFormatter) -> None:
        """Write the epilog."""
        formatter.write(self.epilog or "")


@click.group(
    cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="filterfarm", prog_name="filterfarm")
def cli() -> None:
    """Render what every filter of every layer of a convolutional network looks for, on a laptop or a fleet."""


for _panel, _commands in _PANELS.items():
    cli = click.command_panel(_panel, commands=[str(command.name) for command in _commands])(cli)
    for _command in _commands:
        cli.add_command(_command)


def main() -> int:
    """Run the command line. Returns the exit code; every expected error is one line on standard error."""
    try:
        cli.main(prog_name="filterfarm", standalone_mode=False)
    except FilterfarmError as error:
        click.echo(f"filterfarm: {error}", err=True)
        return int(error.exit_code)
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        click.echo("filterfarm: stopped; the same command resumes", err=True)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of standard output has exited, as head does. Without this, Python's flush at exit would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main())
