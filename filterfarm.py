"""The command ``filterfarm``: checks that Python finds the right packages, then runs the command line.

PYTHONPATH precedes installed packages, and other projects have packages named ``producer`` and ``workers`` too, or a
``celery.py``.
"""

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

#: ExitCode.BAD_SETTINGS, which cannot be imported before the check.
_BAD_SETTINGS = 14

#: Packages whose names other projects give to modules of their own.
_DEPENDENCIES = ("boto3", "celery", "click", "kombu", "redis", "rich", "torch")


def main() -> int:
    """Run the command line; returns its exit code, or 14 if another module precedes a package that it needs."""
    here = Path(__file__).resolve().parent
    expected = {"producer": here, "workers": here}
    for name in _DEPENDENCIES:
        try:
            expected[name] = Path(str(distribution(name).locate_file(""))).resolve()
        except PackageNotFoundError:  # "filterfarm doctor" reports it
            continue
    for name, folder in expected.items():
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent != folder / name:
            print(  # noqa: T201  # this is a command
                f"filterfarm: Python finds {origin or 'nothing'} where it needs {folder / name}; "
                "unset PYTHONPATH, or remove the folder of that module from it",
                file=sys.stderr,
            )
            return _BAD_SETTINGS
    from producer.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
