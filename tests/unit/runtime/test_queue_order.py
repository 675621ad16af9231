"""Queue order: round robin over the jobs, one batch per job."""

from workers.runtime.queue_order import QueueOrder


def read(order: QueueOrder, holding: dict[str, int], count: int) -> str:
    """The jobs of ``count`` messages, each read from the first queue in the order that is not empty, as BRPOP does."""
    found = ""
    for _ in range(count):
        queue = next((name for name in order.consume(99) if holding.get(name)), None)
        if queue is None:
            order.pass_over()
            continue
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


def test_with_many_jobs_a_few_queues_are_read_at_once_and_each_gets_its_turn() -> None:
    # Given two hundred jobs of which two have messages
    order = QueueOrder(4)
    names = [f"j{number:03d}" for number in range(200)]
    order.update(names)
    holding = {"j005": 99, "j150": 99}
    # When messages are read until both have given some
    reads = 0
    found: list[str] = []
    while len(set(found)) < 2:
        listed = order.consume(200)
        assert len(listed) <= 16
        reads += 1
        queue = next((name for name in listed if holding.get(name)), None)
        if queue is None:
            order.pass_over()
        else:
            found.append(order.rotate(queue))
    # Then that took few reads, and once all have been looked at, every read finds a message, four of each in turn
    assert reads < 60
    read(order, holding, 40)
    text = read(order, holding, 40)
    assert text.count("j005") == text.count("j150") == 20
    assert "j005" * 5 not in text
    assert "j150" * 5 not in text
    order.consume(200)
    assert not order.has_more
    # And a job that gets messages later is found soon
    holding["j199"] = 9
    assert "j199" in read(order, holding, 4 * 30)


def test_a_queue_that_was_empty_is_looked_at_again_at_the_next_turns() -> None:
    # Given a job whose queue was empty
    order = QueueOrder(2)
    order.update(["a", "b"])
    holding = {"b": 99}
    assert read(order, holding, 2) == "bb"
    # When it gets messages
    holding["a"] = 3
    # Then it has the next turn
    assert read(order, holding, 6) == "aabbab"
