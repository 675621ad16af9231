"""Settings from the environment: every variable read, every slip told in one line, no password shown."""

import dataclasses
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from celery import Celery

from tests.jobs import NAMES
from workers.clients.broker import connect, make_app
from workers.contract import settings as module
from workers.contract.errors import BadSettings
from workers.contract.settings import VARIABLES, Settings

#: variable -> a value that is not the default, and what it becomes
GIVEN: dict[str, tuple[str, object]] = {
    "FILTERFARM_BROKER_URL": ("rediss://:pw@queue.example:6380/2", "rediss://:pw@queue.example:6380/2"),
    "FILTERFARM_BUCKET": ("s3://pictures/some/folder", "s3://pictures/some/folder"),
    "AWS_ENDPOINT_URL_S3": ("https://s3.example", "https://s3.example"),
    "FILTERFARM_DEVICE": ("cuda:1", "cuda:1"),
    "FILTERFARM_BATCH": ("16", 16),
    "FILTERFARM_PROCESSES": ("2", 2),
    "FILTERFARM_MACHINE": ("rack-3.gpu_1", "rack-3.gpu_1"),
    "FILTERFARM_CACHE": ("/var/cache/x", Path("/var/cache/x")),
    "FILTERFARM_VISIBILITY_TIMEOUT_S": ("60.5", 60.5),
    "FILTERFARM_HANG_S": ("7", 7.0),
    "FILTERFARM_STORAGE_PATIENCE_S": ("0", 0.0),
    "FILTERFARM_DRAIN_S": ("1e1", 10.0),
    "FILTERFARM_ALLOW_FACTORIES": ("mynets, lab.vision", "mynets, lab.vision"),
}

BAD = [
    ("FILTERFARM_ALLOW_FACTORIES", "mynets,lab/vision"),
    ("FILTERFARM_ALLOW_FACTORIES", "mynets.*"),
    ("FILTERFARM_BROKER_URL", "localhost:6379"),
    ("FILTERFARM_BROKER_URL", "amqp://host"),
    ("FILTERFARM_BROKER_URL", "http://host"),
    ("FILTERFARM_BROKER_URL", "redis://host:port/0"),
    ("FILTERFARM_BROKER_URL", "redis://host:99999/0"),
    ("FILTERFARM_BROKER_URL", "redis://[::1/0"),
    ("FILTERFARM_BUCKET", "pictures"),
    ("FILTERFARM_BUCKET", "s3://"),
    ("FILTERFARM_BUCKET", "s3://a"),
    ("FILTERFARM_BUCKET", "s3://UPPER"),
    ("FILTERFARM_BUCKET", "s3://pictures/../other"),
    ("FILTERFARM_BUCKET", "https://pictures"),
    ("AWS_ENDPOINT_URL_S3", "localhost:9000"),
    ("AWS_ENDPOINT_URL_S3", "ftp://host"),
    ("AWS_ENDPOINT_URL_S3", "http://"),
    ("FILTERFARM_DEVICE", "gpu"),
    ("FILTERFARM_DEVICE", "cuda:x"),
    ("FILTERFARM_DEVICE", "cpu:"),
    ("FILTERFARM_MACHINE", "a b"),
    ("FILTERFARM_MACHINE", "a@b"),
    ("FILTERFARM_MACHINE", "x" * 65),
    ("FILTERFARM_BATCH", "many"),
    ("FILTERFARM_BATCH", "1.5"),
    ("FILTERFARM_BATCH", "-1"),
    ("FILTERFARM_BATCH", "1025"),
    ("FILTERFARM_PROCESSES", "-1"),
    ("FILTERFARM_PROCESSES", "17"),
    *((f"FILTERFARM_{name}_S", value)
      for name in ("VISIBILITY_TIMEOUT", "HANG", "STORAGE_PATIENCE", "DRAIN")
      for value in ("soon", "-1", "nan", "inf")),
    ("FILTERFARM_VISIBILITY_TIMEOUT_S", "4"),
    ("FILTERFARM_HANG_S", "0"),
]  # fmt: skip


def test_every_field_has_a_variable_and_every_variable_a_field() -> None:
    # Given all fields
    names = {field.name for field in dataclasses.fields(Settings) if field.compare}
    # Then the table holds them all, and this test a value for each
    assert set(VARIABLES) == names
    assert set(GIVEN) == set(VARIABLES.values())


def test_every_variable_is_documented_at_its_field() -> None:
    # Given the source, in which a comment stands above each field
    documented = dict(re.findall(r"#: (\w+): .*\n(?:    #: .*\n)*    (\w+):", Path(module.__file__).read_text()))
    # Then it names the variable that the field is read from
    assert {field: variable for variable, field in documented.items()} == VARIABLES


@pytest.mark.parametrize("variable", sorted(GIVEN))
def test_every_variable_is_read(variable: str) -> None:
    # Given an environment with this variable alone
    text, expected = GIVEN[variable]
    # When settings are made from it
    settings = Settings.from_environ({variable: text})
    # Then its field has the value, and all others their defaults
    field = next(name for name in VARIABLES if VARIABLES[name] == variable)
    assert dataclasses.asdict(settings) == {**dataclasses.asdict(Settings()), field: expected}


@pytest.mark.parametrize("variable", sorted(GIVEN))
def test_an_empty_variable_is_the_same_as_none(variable: str) -> None:
    # Given a variable that is set to nothing, as Compose does with unset ones
    # When settings are made
    # Then the default holds
    assert Settings.from_environ({variable: ""}) == Settings()
    assert Settings.from_environ({variable: "  "}) == Settings()


@pytest.mark.parametrize("variable", sorted(GIVEN))
def test_white_space_around_a_value_is_ignored(variable: str) -> None:
    # Given a value as it comes out of a file
    text, _ = GIVEN[variable]
    # When settings are made with and without white space
    # Then it makes no difference
    assert Settings.from_environ({variable: f" {text}\n"}) == Settings.from_environ({variable: text})


@pytest.mark.parametrize(("variable", "text"), BAD)
def test_every_bad_value_gives_one_line_that_names_the_variable(variable: str, text: str) -> None:
    # Given a value that cannot be
    # When settings are made from it
    with pytest.raises(BadSettings) as caught:
        Settings.from_environ({variable: text})
    # Then one line says which variable it was
    assert variable in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3cret@host", "amqp://:s3cret@host/0", "redis://:s3cret@host:port/0"])
def test_the_error_for_a_bad_broker_url_omits_its_password(url: str) -> None:
    # Given a broker URL that cannot be, with a password in it
    # When settings are made from it
    with pytest.raises(BadSettings) as caught:
        Settings.from_environ({"FILTERFARM_BROKER_URL": url})
    # Then the password is not in the message
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret@host:6379/0",
        "redis://user:s3cret@host:6379/0",
        "rediss://user:s3cret@host",
        "redis://:s3cret%2F%40x@host:6379/0",
        "redis://host:6379/0?password=s3cret",
    ],
)
def test_the_public_broker_url_shows_the_host_and_never_the_password(url: str) -> None:
    # Given a broker URL with a password
    settings = Settings(broker_url=url)
    # When it is shown
    # Then the password is not in it, and the host is
    assert "s3cret" not in settings.public_broker_url
    assert "host" in settings.public_broker_url
    # And no representation of the settings holds the password
    assert "s3cret" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:s3cret@host:6379/0", "redis://:**@host:6379/0"),
        ("rediss://user:s3@cret@[::1]:6380", "rediss://user:**@[::1]:6380"),
        ("redis://user@host/2", "redis://user@host/2"),
        ("redis://host/0?password=s3cret", "redis://host/0"),
    ],
)
def test_the_public_broker_url_keeps_all_but_the_password_and_the_query(url: str, public: str) -> None:
    assert Settings(broker_url=url).public_broker_url == public


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "sentinel"])
def test_queue_and_ledger_both_understand_every_broker_url_that_is_accepted(scheme: str) -> None:
    # Given a broker URL of some scheme
    try:
        settings = Settings.from_environ({"FILTERFARM_BROKER_URL": f"{scheme}://host:6379/0"})
    except BadSettings:
        return  # refused at once: just as good
    # When the queue's client and the ledger's are made from it
    # Then neither objects
    app: Celery = make_app(settings, NAMES)
    assert app.connection_for_write().transport is not None
    connect(settings, retries=0).close()


def test_settings_come_back_from_the_variables_they_give_to_child_processes() -> None:
    # Given settings of which no field is the default
    settings = Settings.from_environ({variable: text for variable, (text, _) in GIVEN.items()})
    # When a child process reads what it is given
    # Then they are the same, and so are the defaults
    assert Settings.from_environ(settings.to_environ()) == settings
    assert Settings.from_environ(Settings().to_environ()) == Settings()


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        ("s3://pictures", "pictures", ""),
        ("s3://pictures/", "pictures", ""),
        ("s3://pictures/a", "pictures", "a/"),
        ("s3://pictures/a/b/", "pictures", "a/b/"),
    ],
)
def test_a_bucket_url_is_a_bucket_and_a_prefix(url: str, bucket: str, prefix: str) -> None:
    # Given a bucket URL
    settings = Settings.from_environ({"FILTERFARM_BUCKET": url})
    # Then the prefix is a folder, or nothing
    assert (settings.bucket, settings.prefix) == (bucket, prefix)
    assert urlsplit(url).netloc == bucket


def test_a_missing_bucket_is_an_error_once_it_is_needed() -> None:
    # Given an environment without a bucket, as "run" has it
    settings = Settings.from_environ({})
    # When the bucket is asked for
    with pytest.raises(BadSettings) as caught:
        _ = settings.bucket
    # Then one line says what to set
    assert "FILTERFARM_BUCKET is not set" in str(caught.value)


def test_settings_cannot_be_changed() -> None:
    # Given settings
    settings = Settings()
    # When a field is assigned to, then it refuses
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.batch = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("device", "here", "chosen"),
    [
        ("auto", ["cuda:0", "cuda:1"], "cuda:0"),
        ("auto", ["cpu"], "cpu"),
        ("cpu", ["cuda:0"], "cpu"),
        ("cuda", ["cuda:0"], "cuda"),
        ("cuda:1", ["cuda:0", "cuda:1"], "cuda:1"),
        ("mps", ["mps"], "mps"),
    ],
)
def test_a_device_is_chosen_of_those_that_are_here(device: str, here: list[str], chosen: str) -> None:
    assert Settings(device=device).choose_device(here) == chosen


@pytest.mark.parametrize(("device", "here"), [("cuda", ["cpu"]), ("cuda:2", ["cuda:0", "cuda:1"]), ("mps", ["cuda:0"])])
def test_an_absent_device_is_an_error(device: str, here: list[str]) -> None:
    with pytest.raises(BadSettings, match=f"no device '{device}' on this machine; it has {here[0]}"):
        Settings(device=device).choose_device(here)


@pytest.mark.parametrize("choice", ["fast", "OFF", ""])
def test_another_choice_of_convolutions_is_an_error(choice: str) -> None:
    # When / Then
    with pytest.raises(BadSettings, match=f"^FILTERFARM_KERNELS='{choice}' .*auto or off$"):
        Settings.from_environ({"FILTERFARM_KERNELS": choice})
    assert Settings.from_environ({"FILTERFARM_KERNELS": "off"}) == Settings.from_environ({})


@pytest.mark.parametrize(
    ("allowed", "factory", "may"),
    [
        ("", "mynets:make", False),
        ("mynets", "mynets:make", True),
        ("mynets", "mynets.small:make", True),
        ("mynets", "mynets2:make", False),
        ("lab.vision", "lab:make", False),
        ("other, lab.vision", "lab.vision.nets:make", True),
        ("mynets:make", "mynets:make", None),
    ],
)
def test_a_factory_is_allowed_by_whole_parts_of_its_name(allowed: str, factory: str, may: bool | None) -> None:
    # Given a setting
    if may is None:
        with pytest.raises(BadSettings):
            Settings.from_environ({"FILTERFARM_ALLOW_FACTORIES": allowed})
        return
    # When / Then
    assert Settings.from_environ({"FILTERFARM_ALLOW_FACTORIES": allowed}).allows(factory) is may
