"""Whose queue a worker asks first: turns of one batch per job."""

from workers.runtime.queue_order import QueueOrder


def read(turns: QueueOrder, holding: dict[str, int], count: int) -> str:
    """The jobs of ``count`` messages, read as Redis does: of the first queue, in the given order, that holds one."""
    found = ""
    for _ in range(count):
        queue = next((name for name in turns.consume(99) if holding.get(name)), None)
        if queue is None:
            break
        holding[queue] -= 1
        found += turns.rotate(queue)
    return found


def test_each_job_gets_a_batch_in_turn() -> None:
    # Given three jobs with plenty of messages, and batches of four
    turns = QueueOrder(4)
    turns.update(["a", "b", "c"])
    # When messages are read
    # Then each job has its turn, one whole batch of it
    assert read(turns, {"a": 99, "b": 99, "c": 99}, 28) == "aaaabbbbccccaaaabbbbccccaaaa"


def test_a_job_without_messages_leaves_its_turn_to_the_others() -> None:
    # Given a job that has run dry
    turns = QueueOrder(2)
    turns.update(["dry", "a", "b"])
    # When messages are read
    # Then the others take turns
    assert read(turns, {"a": 9, "b": 9}, 8) == "aabbaabb"


def test_a_new_job_comes_next_and_the_others_keep_their_places() -> None:
    # Given two jobs, the first of which has had one message of its turn of two
    turns = QueueOrder(2)
    turns.update(["a", "b"])
    holding = {"a": 99, "b": 99, "new": 99}
    assert read(turns, holding, 1) == "a"
    # When a third comes, and is read from
    turns.update(["b", "a", "new"])
    # Then it has the next turn, and the first goes on where it was
    assert read(turns, holding, 7) == "newnewabbnewnew"


def test_a_job_that_has_ended_is_asked_no_more() -> None:
    # Given two jobs, of which one ends
    turns = QueueOrder(2)
    turns.update(["a", "b"])
    turns.update(["b"])
    # When the queues are asked for
    # Then only the other is there, and a last message of the first changes nothing
    assert turns.consume(9) == ["b"]
    assert turns.rotate("a") == "a"
    assert turns.consume(9) == ["b"]


def test_no_more_queues_are_given_than_are_wanted() -> None:
    # Given three queues
    turns = QueueOrder(2)
    turns.update(["a", "b", "c"])
    # When two are wanted
    # Then the first two are given
    assert turns.consume(2) == ["a", "b"]
