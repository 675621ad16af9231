"""All errors that filterfarm raises itself. Each is either permanent or transient.

A message states the fault, the value and the remedy, on one line and without secrets. The command line prints it and
exits with the error's ``exit_code``. A worker retries only transient errors.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of the ``filterfarm`` command."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    UNKNOWN_MODEL = 10
    UNKNOWN_LAYER = 11
    BAD_FILTERS = 12
    BAD_OPTION = 13
    BAD_SETTINGS = 14
    BAD_NETWORK = 15
    WEIGHTS_MISSING = 20
    WEIGHTS_UNREADABLE = 21
    WEIGHTS_DO_NOT_FIT = 22
    BROKER_UNREACHABLE = 30
    BROKER_DENIED = 31
    BROKER_FULL = 32
    CLOCK_WRONG = 33
    STORAGE_UNREACHABLE = 40
    STORAGE_DENIED = 41
    NO_BUCKET = 42
    NO_JOB = 50
    CORRUPT_JOB = 51
    CORRUPT_TILE = 52
    JOB_INCOMPLETE = 53
    RENDER_FAILED = 54
    SERVER_FAILED = 60
    DEVICE_LOST = 61
    MACHINE_UNFIT = 62
    INTERRUPTED = 130


class FilterfarmError(Exception):
    """Root of all errors that filterfarm raises itself."""

    exit_code = ExitCode.UNEXPECTED


class PermanentError(FilterfarmError):
    """Raised when a retry cannot succeed."""


class TransientError(FilterfarmError):
    """Raised when a retry may succeed."""


class UnknownModel(PermanentError):
    """Raised when no model has the given name."""

    exit_code = ExitCode.UNKNOWN_MODEL


class UnknownLayer(PermanentError):
    """Raised when a model has no convolution of the given name, alias or glob."""

    exit_code = ExitCode.UNKNOWN_LAYER


class BadFilters(PermanentError):
    """Raised when a filter range is malformed or exceeds the layer."""

    exit_code = ExitCode.BAD_FILTERS


class BadOption(PermanentError):
    """Raised when a recipe or grid option has a value that cannot be rendered."""

    exit_code = ExitCode.BAD_OPTION


class BadSettings(PermanentError):
    """Raised when the environment's settings are malformed or contradict each other."""

    exit_code = ExitCode.BAD_SETTINGS


class BadNetwork(PermanentError):
    """Raised when a person's own network cannot be made: its factory or file is missing, fails or is not permitted."""

    exit_code = ExitCode.BAD_NETWORK


class WeightsMissing(PermanentError):
    """Raised when weights are neither on this machine nor downloadable."""

    exit_code = ExitCode.WEIGHTS_MISSING


class WeightsUnreadable(PermanentError):
    """Raised when a weights file cannot be read safely."""

    exit_code = ExitCode.WEIGHTS_UNREADABLE


class WeightsDoNotFit(PermanentError):
    """Raised when a weights file does not match the model's architecture."""

    exit_code = ExitCode.WEIGHTS_DO_NOT_FIT


class BrokerUnreachable(TransientError):
    """Raised when Redis does not answer."""

    exit_code = ExitCode.BROKER_UNREACHABLE


class BrokerDenied(PermanentError):
    """Raised when Redis refuses the credentials or commands that the farm needs, or is a cluster."""

    exit_code = ExitCode.BROKER_DENIED


class BrokerFull(TransientError):
    """Raised when Redis refuses writes because its memory or disk is full."""

    exit_code = ExitCode.BROKER_FULL


class ClockWrong(PermanentError):
    """Raised when this machine's clock differs too much from that of the Redis server."""

    exit_code = ExitCode.CLOCK_WRONG


class StorageUnreachable(TransientError):
    """Raised when the object store does not answer or reports overload."""

    exit_code = ExitCode.STORAGE_UNREACHABLE


class StorageDenied(PermanentError):
    """Raised when the object store refuses the credentials or the action."""

    exit_code = ExitCode.STORAGE_DENIED


class NoBucket(PermanentError):
    """Raised when the bucket does not exist."""

    exit_code = ExitCode.NO_BUCKET


#: Every error of the object store that a valid request can meet.
STORAGE_ERRORS = (StorageUnreachable, StorageDenied, NoBucket)


class NoJob(PermanentError):
    """Raised when the bucket holds no job of the given id."""

    exit_code = ExitCode.NO_JOB


class CorruptJob(PermanentError):
    """Raised when a job or a task message does not decode to a valid one."""

    exit_code = ExitCode.CORRUPT_JOB


class JobNotUnderstood(TransientError):
    """Raised when this worker must not or cannot render a job, and others may: one of a later version, or of a network
    that its settings do not permit.
    """

    def __init__(self, message: str, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class CorruptTile(PermanentError):
    """Raised when a stored tile is not a valid PNG of the expected tile."""

    exit_code = ExitCode.CORRUPT_TILE


class JobIncomplete(PermanentError):
    """Raised when a job ended without all of its tiles, or was cancelled while a command waited for it."""

    exit_code = ExitCode.JOB_INCOMPLETE


class RenderFailed(PermanentError):
    """Raised when a tile cannot be rendered here; another machine may be able to."""

    exit_code = ExitCode.RENDER_FAILED


class Unrenderable(RenderFailed):
    """Raised when no machine can render a tile."""


class CacheFailed(TransientError):
    """Raised when this machine cannot keep a checkpoint on its disk; another machine can."""


class MachineUnfit(TransientError):
    """Raised when a worker stops because nothing that it tried succeeded; its tiles are requeued for others."""

    exit_code = ExitCode.MACHINE_UNFIT


#: Errors of this machine, whatever the tile. They are never counted as attempts at a tile.
MACHINE_ERRORS = (CacheFailed, WeightsMissing)


class DeviceFull(PermanentError):
    """Raised when a batch does not fit into the device's memory; another machine may have more."""


class DeviceFailed(PermanentError):
    """Raised when a device no longer responds, such as a GPU after a fault; another machine's may."""


class DeviceLost(TransientError):
    """Raised when a new process cannot compute on the device either; its tiles are requeued for other machines."""

    exit_code = ExitCode.DEVICE_LOST


class RendererLost(TransientError):
    """Raised when the renderer's process died or hung."""


class Draining(TransientError):
    """Raised for work that a stopping worker requeues."""


class ServerFailed(PermanentError):
    """Raised when a local server started by filterfarm does not become ready."""

    exit_code = ExitCode.SERVER_FAILED


def one_line(error: BaseException, limit: int = 200) -> str:
    """The error's text on one line of at most ``limit`` characters; the error's class if it has no text."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
