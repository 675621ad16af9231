"""The command ``filterfarm``: checks that Python finds this project's packages, then runs its command line.

The packages ``producer`` and ``workers`` have names that others use too. PYTHONPATH precedes installed packages.
"""

import importlib.util
import sys
from pathlib import Path

#: ExitCode.BAD_SETTINGS, which cannot be imported before the check.
_BAD_SETTINGS = 14


def main() -> int:
    """Run the command line; returns its exit code, or 14 if another package named like one of ours precedes it."""
    here = Path(__file__).resolve().parent
    for name in ("producer", "workers"):
        spec = importlib.util.find_spec(name)
        found = [Path(path).resolve() for path in (spec.submodule_search_locations or ())] if spec else []
        if found != [here / name]:
            place = found[0] if found else "nothing"
            print(  # noqa: T201  # this is a command
                f"filterfarm: Python finds {place} where it needs {here / name}; "
                "unset PYTHONPATH, or remove the folder of that package from it",
                file=sys.stderr,
            )
            return _BAD_SETTINGS
    from producer.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
