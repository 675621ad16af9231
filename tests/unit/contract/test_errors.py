"""Errors and exit codes: what a script may rely on."""

import inspect

from workers.contract import errors
from workers.contract.errors import ExitCode, FilterfarmError, PermanentError, TransientError, one_line

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FilterfarmError)]
OWN_CODES = {kind: vars(kind)["exit_code"] for kind in CLASSES if "exit_code" in vars(kind)}


def test_no_two_errors_share_an_exit_code() -> None:
    # Given every error that sets a code
    codes = list(OWN_CODES.values())
    # Then each has its own
    assert len(codes) > 15
    assert len(set(codes)) == len(codes)


def test_exit_codes_below_ten_are_the_usual_ones() -> None:
    # Given all exit codes
    # When those below 10 are taken
    low = {code for code in ExitCode if code < 10}
    # Then they are the usual three, and none belongs to an error of ours
    assert low == {ExitCode.OK, ExitCode.UNEXPECTED, ExitCode.USAGE}
    assert {code for kind, code in OWN_CODES.items() if kind is not FilterfarmError}.isdisjoint(low)


def test_every_exit_code_fits_a_shell_and_belongs_to_an_error() -> None:
    # Given all exit codes
    # Then a shell can tell them from death by signal, but for the one that means it
    assert [code for code in ExitCode if code > 125] == [ExitCode.INTERRUPTED]
    # And each is an error's, or the command's own
    assert set(ExitCode) - set(OWN_CODES.values()) == {ExitCode.OK, ExitCode.USAGE, ExitCode.INTERRUPTED}


def test_every_error_is_either_permanent_or_transient_and_says_when_it_is_raised() -> None:
    # Given every error but the three roots
    for kind in set(CLASSES) - {FilterfarmError, PermanentError, TransientError}:
        # Then a worker knows whether to try again
        assert issubclass(kind, PermanentError) != issubclass(kind, TransientError), kind
        # And its docstring says when it is raised
        assert (kind.__doc__ or "").startswith("Raised "), kind


def test_an_errors_text_comes_on_one_line_of_limited_length() -> None:
    assert one_line(ValueError("first\n  second\t third")) == "first second third"
    assert one_line(ValueError("x" * 500), 10) == "x" * 10
    assert one_line(ValueError()) == "ValueError"
