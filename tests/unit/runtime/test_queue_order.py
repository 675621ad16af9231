"""Queue order: round robin over the jobs, one batch per job."""

from workers.runtime.queue_order import QueueOrder


def read(order: QueueOrder, holding: dict[str, int], count: int) -> str:
    """The jobs of ``count`` messages, each read from the first queue in the order that is not empty, as BRPOP does."""
    found = ""
    for _ in range(count):
        queue = next((name for name in order.consume(99) if holding.get(name)), None)
        if queue is None:
            break
        holding[queue] -= 1
        found += order.rotate(queue)
    return found


def test_jobs_are_read_round_robin_one_batch_each() -> None:
    # Given three jobs with plenty of messages, and batches of four
    order = QueueOrder(4)
    order.update(["a", "b", "c"])
    # When messages are read
    # Then the jobs follow each other, with a whole batch each
    assert read(order, {"a": 99, "b": 99, "c": 99}, 28) == "aaaabbbbccccaaaabbbbccccaaaa"


def test_a_job_without_messages_is_skipped() -> None:
    # Given a job without messages
    order = QueueOrder(2)
    order.update(["dry", "a", "b"])
    # When messages are read
    # Then the others alternate
    assert read(order, {"a": 9, "b": 9}, 8) == "aabbaabb"


def test_a_new_job_is_next_and_the_others_keep_their_order() -> None:
    # Given two jobs and batches of two, of which one message of the first job has been read
    order = QueueOrder(2)
    order.update(["a", "b"])
    holding = {"a": 99, "b": 99, "new": 99}
    assert read(order, holding, 1) == "a"
    # When a third job is added
    order.update(["b", "a", "new"])
    # Then it is next, and the first job's batch is completed after it
    assert read(order, holding, 7) == "newnewabbnewnew"


def test_a_finished_job_is_not_read_any_more() -> None:
    # Given two jobs, of which one ends
    order = QueueOrder(2)
    order.update(["a", "b"])
    order.update(["b"])
    # When the queues are listed
    # Then only the other job's is, and a last message of the first changes nothing
    assert order.consume(9) == ["b"]
    assert order.rotate("a") == "a"
    assert order.consume(9) == ["b"]


def test_at_most_the_requested_number_of_queues_is_returned() -> None:
    # Given three queues
    order = QueueOrder(2)
    order.update(["a", "b", "c"])
    # When two are requested
    # Then the first two are returned
    assert order.consume(2) == ["a", "b"]
