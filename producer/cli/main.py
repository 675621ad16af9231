"""The ``filterfarm`` command: parse, one call, print. Data goes to standard output, everything else to the error."""

import gc
import os
import sys

import click

from producer.cli import farm_commands, job_commands
from workers.contract.errors import ExitCode, FilterfarmError

_EPILOG = """\b
Examples:
  filterfarm run efficientnet_lite0 --layers 'conv_stem,conv_head' --filters 0-31
  filterfarm run vgg16 --layers block1_conv1 --filters 0-63 --size 64 --grid 8x8 --margin 5
  filterfarm layers vgg16
  filterfarm plan inception_v3 --size 299
  filterfarm quality JOB              how good its pictures are, in figures

\b
On a fleet, with FILTERFARM_BROKER_URL, FILTERFARM_BUCKET and the AWS variables set:
  filterfarm worker --all-gpus        on every GPU machine
  filterfarm collector                once, anywhere
  filterfarm submit vgg16 --wait      from your desk
  filterfarm fetch JOB pictures/
"""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="filterfarm", prog_name="filterfarm")
def cli() -> None:
    """Render what every filter of every layer of a convolutional network looks for, on a laptop or a fleet."""


for _command in (
    job_commands.run,
    job_commands.layers,
    job_commands.plan,
    job_commands.submit,
    farm_commands.worker,
    farm_commands.collector,
    farm_commands.status,
    farm_commands.watch,
    farm_commands.fetch,
    farm_commands.quality,
    farm_commands.cancel,
    farm_commands.doctor,
):
    cli.add_command(_command)


def main() -> None:
    """Entry point: every expected error is one line on standard error and an exit code of its own."""
    # Torch is made of a million objects that are no garbage. To look for some among them ever so often while it is
    # loaded was a good part of the time of a command.
    gc.set_threshold(100_000)
    code = _exit_code()
    # So was to take them apart, one by one, at the end: 0.3 s. What a command began it has ended, and what it printed
    # is out: click flushes each line.
    os._exit(code)


def _exit_code() -> int:
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
        # The reader of our output has left, as head does; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(ExitCode.OK)


if __name__ == "__main__":
    main()
