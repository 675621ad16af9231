"""Addresses as people write them: what works, and one line on what does not."""

import pytest
from celery import Celery

from tests.jobs import NAMES
from workers.clients.broker import connect, make_app
from workers.contract.errors import BadSettings
from workers.contract.settings import Settings


def refused(**variables: str) -> str:
    """The one line that refuses these environment variables."""
    with pytest.raises(BadSettings) as caught:
        Settings.from_environ(variables)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://user:p%40ss%2F%23%3B@host:6379/3",
        "rediss://host?ssl_cert_reqs=required",
        "rediss://host/1?ssl_cert_reqs=none&ssl_check_hostname=false",
        "rediss://host/1?ssl_ca_certs=/etc/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem",
    ],
)
def test_celery_and_redis_py_accept_every_broker_url_that_is_accepted(url: str) -> None:
    # Given
    settings = Settings.from_environ({"FILTERFARM_BROKER_URL": url})
    # When
    app: Celery = make_app(settings, NAMES)
    with app.connection_for_write() as connection, connect(settings, retries=0) as client:
        ours = client.connection_pool.connection_kwargs
        # Then both lead to the same server
        assert connection.hostname == ours["host"]
        assert (connection.password, int(connection.virtual_host.strip("/") or 0)) == (
            ours.get("password"),
            ours.get("db", 0),
        )
        assert connection.transport is not None
        client.connection_pool.make_connection()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:a/b@host:6379/0",
        "redis://:a?b@host:6379/0",
        "redis://:a]b@host:6379/0",
        "redis://:a;b@host:6379/0",
        "redis://user:1#s3cret@host",
    ],
)
def test_a_password_that_must_be_encoded_is_refused_with_the_encoding(url: str) -> None:
    # When
    message = refused(FILTERFARM_BROKER_URL=url)
    # Then
    assert "# as %23" in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("unix:///run/redis.sock", "Unix sockets are not supported"),
        ("redis+socket:///run/redis.sock?virtual_host=1", "Unix sockets are not supported"),
        ("sentinel://host:26379", "sentinel:// is not supported"),
        ("redis+cluster://host:7000", "redis+cluster:// is not supported"),
        ("redis://host/?db=3", "write the database as redis://host:6379/3"),
        ("rediss://host?virtual_host=2", "write the database as rediss://host:6379/2"),
        ("redis://host/0?password=s3cret", "redis://user:password@host"),
        ("redis://host/0?socket_timeout=5", "'socket_timeout' is not supported"),
        ("redis://host/0?heartbeat=5", "'heartbeat' is not supported"),
        ("redis://host/0?ssl_ca_certs=/ca.pem", "is for rediss://"),
        ("rediss://host/0?ssl_cert_reqs=CERT_NONE", "must be required, optional, none"),
        ("rediss://host/0?ssl_check_hostname=0", "must be true or false"),
        ("redis://host/0#1", "is no Redis URL"),
        ("redis://one;redis://two", "is no Redis URL"),
    ],
)
def test_a_broker_url_that_one_library_does_not_take_is_refused_with_the_way_out(url: str, part: str) -> None:
    # When
    message = refused(FILTERFARM_BROKER_URL=url)
    # Then
    assert part in message
    assert message.startswith("FILTERFARM_BROKER_URL")
    assert "s3cret" not in message


@pytest.mark.parametrize(
    "prefix", ["my pictures", "user=me/date=2024-01-01", "a+b", "été", "50 %", "#1", "a&b?", "it's", '"']
)
def test_a_prefix_may_have_any_printable_character(prefix: str) -> None:
    # When
    settings = Settings.from_environ({"FILTERFARM_BUCKET": f"s3://pictures_of_mine/{prefix}/"})
    # Then
    assert (settings.bucket, settings.prefix) == ("pictures_of_mine", f"{prefix}/")


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("s3://pictures/a//b", "empty segment"),
        ("s3://pictures//a", "empty segment"),
        ("s3://pictures/a/../b", "'.' or '..'"),
        ("s3://pictures/.", "'.' or '..'"),
        ("s3://pictures/a\tb", r"'\t'"),
        ("s3://pictures/a\nb", r"'\n'"),
        ("s3://pictures/a\\b", r"'\\'"),
        ("s3://pictures/\u200bb", r"'\u200b'"),
        ("s3://pictures/" + "é" * 257, "512 bytes"),
        ("s3://Pictures", "'Pictures' is no bucket"),
        ("s3://a", "3 to 63"),
        ("s3://", "3 to 63"),
        ("gs://pictures", "write s3://bucket"),
        ("pictures/a", "write s3://bucket"),
    ],
)
def test_a_bucket_or_prefix_that_no_store_takes_is_refused_with_the_character(url: str, part: str) -> None:
    # When
    message = refused(FILTERFARM_BUCKET=url)
    # Then
    assert part in message
    assert message.startswith("FILTERFARM_BUCKET=")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
@pytest.mark.parametrize(
    "url", ["host:9000", "ftp://host", "http://", "http://host:0", "http://host:x", "http://a b", "http://host?x=1"]
)
def test_an_endpoint_that_is_no_address_is_refused_with_the_variable_that_holds_it(variable: str, url: str) -> None:
    assert refused(**{variable: url}).startswith(f"{variable}=")


def test_a_password_in_the_endpoint_is_not_shown() -> None:
    assert "s3cret" not in refused(AWS_ENDPOINT_URL="http://me:s3cret@host")
    assert "s3cret" not in refused(AWS_ENDPOINT_URL="http://me:s3cret@host:x")


def test_the_endpoint_of_all_aws_services_is_read_where_that_of_s3_is_not_set() -> None:
    # Given
    both = {"AWS_ENDPOINT_URL": "http://all", "AWS_ENDPOINT_URL_S3": "http://s3"}
    # When / Then
    assert Settings.from_environ(both).endpoint_url == "http://s3"
    assert Settings.from_environ({"AWS_ENDPOINT_URL": "http://all"}).endpoint_url == "http://all"
    assert Settings.from_environ({**both, "AWS_ENDPOINT_URL_S3": ""}).endpoint_url == "http://all"


def test_celerys_broker_url_is_read_where_a_bucket_is_set_and_ours_is_not() -> None:
    # Given
    theirs, bucket = {"CELERY_BROKER_URL": "redis://theirs/1"}, {"FILTERFARM_BUCKET": "s3://pictures"}
    ours = {"FILTERFARM_BROKER_URL": "redis://ours/1"}
    # When / Then: without a bucket, it belongs to another program
    assert Settings.from_environ(theirs) == Settings()
    assert Settings.from_environ({"CELERY_BROKER_URL": "amqp://theirs"}) == Settings()
    assert Settings.from_environ(theirs | bucket).broker_url == "redis://theirs/1"
    assert Settings.from_environ(theirs | bucket | ours).broker_url == "redis://ours/1"
    # And an error names the variable that holds the value
    assert refused(**bucket, CELERY_BROKER_URL="amqp://:s3cret@theirs").startswith("CELERY_BROKER_URL is no Redis URL")


def test_child_processes_read_equal_settings_from_the_same_variables() -> None:
    # Given
    settings = Settings.from_environ(
        {"CELERY_BROKER_URL": "redis://b", "FILTERFARM_BUCKET": "s3://pictures", "AWS_ENDPOINT_URL": "http://e"}
    )
    # When
    environ = settings.to_environ()
    # Then
    assert (environ["CELERY_BROKER_URL"], environ["AWS_ENDPOINT_URL"]) == ("redis://b", "http://e")
    assert not {"FILTERFARM_BROKER_URL", "AWS_ENDPOINT_URL_S3"} & environ.keys()
    assert Settings.from_environ(environ) == settings
    assert Settings.from_environ(environ).substituted == settings.substituted
