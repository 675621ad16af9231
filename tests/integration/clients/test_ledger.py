"""The ledger on a real server: doing anything twice changes nothing."""

import time

import pytest
import redis

from tests.jobs import NAMES, bits, done_tiles, sample_job
from workers.clients.claims import Attempts, Claim
from workers.clients.ledger import SUBMITTING_S, Ledger
from workers.clients.presence import Presence
from workers.contract import keys
from workers.contract.errors import NoBucket

JOB = sample_job(filters="0-40")
OTHER = sample_job(seed=1)
TRIED = Attempts(since=1.0, reasons={"cpu@one": "why"})


def starts(claim: Claim | None) -> int:
    """The number of unfinished attempts, with the one that the claim allows; 0 if the claim was refused."""
    return 1 + claim.starts if claim else 0


def begin(ledger: Ledger, job_id: str, number: int) -> int:
    """A beginning that has no end, though nobody has the tile any more."""
    claim = ledger.claim(job_id, number, "begins", 60.0)
    ledger.begin(job_id, [number])
    ledger.end_claim(job_id, number, "begins", stored=False)
    return starts(claim)


def attempts(ledger: Ledger, number: int) -> Attempts:
    """The attempts of machines at a tile of JOB."""
    claim = ledger.claim(JOB.id, number, "asks", 60.0)
    assert claim is not None
    ledger.end_claim(JOB.id, number, "asks", stored=False)
    return claim.attempts


def contents(ledger: Ledger) -> dict[bytes, bytes]:
    """All that Redis holds."""
    return {bytes(key): ledger.client.dump(key) or b"" for key in ledger.client.scan_iter()}


def test_a_new_ledger_knows_nothing(ledger: Ledger) -> None:
    # Given an empty Redis
    # Then every question has an answer, and it is no
    assert ledger.jobs() == set()
    assert done_tiles(ledger, JOB) == set()
    assert ledger.failed(JOB.id) == {}
    assert ledger.requeued(JOB.id) == 0
    assert ledger.planned(JOB.id) is None
    assert not ledger.is_submitting(JOB.id)
    assert not ledger.is_cancelled(JOB.id)
    assert not ledger.is_synced(JOB.id)
    # And asking has left nothing behind
    assert contents(ledger) == {}


def test_jobs_are_registered_and_unregistered_once(ledger: Ledger) -> None:
    # Given two jobs, registered twice
    for job in (JOB, OTHER, JOB):
        ledger.register(job.id)
    assert ledger.jobs() == {JOB.id, OTHER.id}
    # When one is unregistered, twice
    for _ in range(2):
        ledger.unregister(JOB.id)
    # Then the other is left
    assert ledger.jobs() == {OTHER.id}


def test_a_cancelled_job_is_off_the_list_until_it_is_registered_again(ledger: Ledger) -> None:
    # Given a job
    ledger.register(JOB.id)
    # When it is cancelled, twice
    for _ in range(2):
        ledger.cancel(JOB.id)
    # Then workers and the collector know it, and other jobs do not care
    assert ledger.is_cancelled(JOB.id)
    assert ledger.jobs() == set()
    assert not ledger.is_cancelled(OTHER.id)
    # And registering it again undoes it
    ledger.register(JOB.id)
    assert not ledger.is_cancelled(JOB.id)
    assert ledger.jobs() == {JOB.id}


def test_a_job_is_held_until_it_is_released_or_its_holder_is_silent(ledger: Ledger) -> None:
    # Given a job that is being enqueued
    ledger.begin_submission(JOB.id)
    # Then it is held, for a limited time
    assert ledger.is_submitting(JOB.id)
    assert 0 < ledger.client.ttl(NAMES.field(JOB.id, "submitting")) <= SUBMITTING_S
    # When it is released, twice
    for _ in range(2):
        ledger.end_submission(JOB.id)
    # Then it is free
    assert not ledger.is_submitting(JOB.id)


def test_done_tiles_are_known_and_no_others(ledger: Ledger) -> None:
    # Given tiles whose bits are the first, the last and the middle of a byte, and far apart, marked twice
    job = sample_job(filters="0-17299", channels=17_300)
    numbers = {0, 7, 8, 12, 63, 17_215}
    for number in [*numbers, *numbers]:
        ledger.end_claim(job.id, number, "token", stored=True)
    # When the ledger is asked
    # Then it knows those and no others
    assert done_tiles(ledger, job) == numbers
    assert ledger.counts(job.id) == (6, 0)
    assert done_tiles(ledger, OTHER) == set()


def test_bits_stand_in_the_order_that_redis_itself_counts_them(ledger: Ledger, redis_client: "redis.Redis") -> None:
    # Given two done tiles
    for number in (3, 17):
        ledger.end_claim(JOB.id, number, "token", stored=True)
    key = NAMES.field(JOB.id, "done")
    # When Redis looks for the first set bit, from the start and further on
    # Then it finds the same
    assert redis_client.bitpos(key, 1) == 3
    assert redis_client.bitpos(key, 1, 1) == 17
    assert redis_client.bitcount(key) == 2


def test_a_failed_tile_keeps_its_reason_and_its_last_one(ledger: Ledger) -> None:
    # Given a tile that failed twice
    ledger.mark_failed(JOB.id, 3, "first")
    ledger.mark_failed(JOB.id, 3, "größer: \U0001f4a5\nnext line")
    # When the ledger is asked
    # Then the last reason is there, to the letter, and the tile is not done
    assert ledger.failed(JOB.id) == {3: "größer: \U0001f4a5\nnext line"}
    assert done_tiles(ledger, JOB) == set()


def test_a_tile_that_is_done_after_all_is_no_failure(ledger: Ledger) -> None:
    # Given a tile that failed
    begin(ledger, JOB.id, 3)
    ledger.record_attempts(JOB.id, 3, TRIED)
    ledger.mark_failed(JOB.id, 3, "why")
    # When it is done after all
    ledger.end_claim(JOB.id, 3, "token", stored=True)
    # Then nothing of the failure is left
    assert ledger.failed(JOB.id) == {}
    assert not ledger.client.exists(NAMES.field(JOB.id, "starts"))
    assert not ledger.client.exists(NAMES.field(JOB.id, "attempts"))


def test_beginnings_count_until_they_end(ledger: Ledger) -> None:
    # Given a tile that two workers began and never ended
    assert [begin(ledger, JOB.id, 5) for _ in range(2)] == [1, 2]
    # When a third begins and hands it back
    assert begin(ledger, JOB.id, 5) == 3
    ledger.undo_start(JOB.id, 5)
    # Then the next is the third again: a preemption is no attempt
    assert begin(ledger, JOB.id, 5) == 3
    # And other tiles have counts of their own
    assert begin(ledger, JOB.id, 6) == 1
    assert begin(ledger, OTHER.id, 5) == 1


def test_a_claim_that_is_sent_again_is_one_beginning(ledger: Ledger) -> None:
    # Given a tile that was begun once, and is claimed again
    begin(ledger, JOB.id, 5)
    assert starts(ledger.claim(JOB.id, 5, "token", 60.0)) == 2
    # When the same delivery claims it once more, because it has had no answer
    # Then it has it, and that counts no further beginning
    assert starts(ledger.claim(JOB.id, 5, "token", 60.0)) == 2


def test_a_beginning_counts_though_redis_has_lost_those_before(ledger: Ledger) -> None:
    # Given a tile that is being rendered while Redis loses its data, and is then handed back
    assert starts(ledger.claim(JOB.id, 5, "token", 60.0)) == 1
    ledger.client.flushall()
    ledger.undo_start(JOB.id, 5)
    # When it is delivered again
    # Then it can be claimed, and the claim survives another loss of the count
    assert starts(ledger.claim(JOB.id, 5, "other", 60.0)) == 1
    ledger.client.delete(NAMES.field(JOB.id, "starts"))
    assert starts(ledger.claim(JOB.id, 5, "other", 60.0)) == 1


def test_scripts_outlive_a_restart_of_redis(ledger: Ledger, redis_client: "redis.Redis") -> None:
    # Given a Redis that has forgotten all scripts
    assert ledger.claim(JOB.id, 1, "token", 60.0)
    redis_client.script_flush()
    # When they are used
    ledger.end_claim(JOB.id, 1, "token", stored=False)
    redis_client.script_flush()
    # Then they work
    assert starts(ledger.claim(JOB.id, 1, "other", 60.0)) == 1


def test_the_machines_that_could_not_render_a_tile_are_kept_with_their_reasons(ledger: Ledger) -> None:
    # Given two machines' attempts at one tile
    assert attempts(ledger, 1) == Attempts()
    one = Attempts().with_reason("cpu@one", "größer\n")
    two = one.with_reason("cpu@two", "why")
    # When they are recorded
    ledger.record_attempts(JOB.id, 1, one)
    ledger.record_attempts(JOB.id, 1, two)
    # Then a claim knows them, and since when; other tiles have none
    assert attempts(ledger, 1) == two
    assert two.reasons == {"cpu@one": "größer\n", "cpu@two": "why"}
    assert two.since == one.since > 0
    assert attempts(ledger, 2) == Attempts()


@pytest.mark.parametrize("text", ["2", "", "{", "[]", '{"since": "x", "reasons": {}}', '{"since": 1}', b"\xff"])
def test_what_is_no_list_of_attempts_is_none(ledger: Ledger, text: str | bytes) -> None:
    # Given what an earlier version, or another program, left
    ledger.client.hset(NAMES.field(JOB.id, "attempts"), "1", text)
    # When / Then
    assert attempts(ledger, 1) == Attempts()


def test_a_reopened_tile_is_as_new_and_others_stay(ledger: Ledger) -> None:
    # Given a done tile, a failed one, and one more of each
    for number in (1, 2):
        ledger.end_claim(JOB.id, number, "token", stored=True)
    for number in (3, 4):
        ledger.mark_failed(JOB.id, number, "why")
        ledger.record_attempts(JOB.id, number, TRIED)
    # When one of each is reopened, twice
    for _ in range(2):
        ledger.reopen(JOB.id, {1, 3})
    # Then they are as new, and the others are as they were
    assert done_tiles(ledger, JOB) == {2}
    assert ledger.failed(JOB.id) == {4: "why"}
    assert ledger.client.hkeys(NAMES.field(JOB.id, "attempts")) == [b"4"]
    assert begin(ledger, JOB.id, 3) == 1


def test_reopening_nothing_changes_nothing(ledger: Ledger) -> None:
    # Given a done tile
    ledger.end_claim(JOB.id, 1, "token", stored=True)
    before = contents(ledger)
    # When nothing is reopened
    ledger.reopen(JOB.id, set())
    # Then nothing has changed
    assert contents(ledger) == before


def test_a_tile_that_is_enqueued_again_twice_counts_once(ledger: Ledger) -> None:
    # Given tiles that the collector has enqueued again
    ledger.record_requeued(JOB.id, {1, 2})
    # When one of them is once more
    ledger.record_requeued(JOB.id, {2, 3})
    ledger.record_requeued(JOB.id, set())
    # Then each counts once
    assert ledger.requeued(JOB.id) == 3


def test_syncing_replaces_the_ledger_by_the_buckets_state(ledger: Ledger) -> None:
    # Given a ledger that says something else
    ledger.end_claim(JOB.id, 9, "token", stored=True)
    ledger.mark_failed(JOB.id, 10, "old")
    begin(ledger, JOB.id, 11)
    ledger.record_attempts(JOB.id, 11, TRIED)
    # When it is filled from the bucket, twice
    for _ in range(2):
        ledger.sync(JOB, bits(JOB, {0, 40}), {5: "why"}, ledger.done_bits(JOB.id))
    # Then it says that, and knows that it does
    assert done_tiles(ledger, JOB) == {0, 40}
    assert ledger.failed(JOB.id) == {5: "why"}
    assert ledger.is_synced(JOB.id)
    assert not ledger.is_synced(OTHER.id)
    assert begin(ledger, JOB.id, 11) == 1
    assert attempts(ledger, 11) == Attempts()


def test_what_is_stored_while_the_bucket_is_read_stays_done(ledger: Ledger) -> None:
    # Given a ledger that has a tile of which the bucket knows nothing any more
    ledger.end_claim(JOB.id, 3, "token", stored=True)
    ledger.end_claim(JOB.id, 4, "token", stored=True)
    before = ledger.done_bits(JOB.id)
    # When other tiles are stored between the reading of the bucket and the filling of the ledger
    listed = bits(JOB, {4, 7})
    ledger.end_claim(JOB.id, 40, "token", stored=True)
    ledger.end_claim(JOB.id, 5, "token", stored=True)
    ledger.sync(JOB, listed, {}, before)
    # Then they are done, and what the bucket has lost is not
    assert done_tiles(ledger, JOB) == {4, 5, 7, 40}
    assert ledger.counts(JOB.id) == (4, 0)


def test_the_state_of_a_job_that_has_ended_expires_after_a_week(ledger: Ledger) -> None:
    # Given a job with every kind of state
    ledger.register(JOB.id)
    ledger.sync(JOB, bits(JOB, {1}), {2: "why"}, b"")
    ledger.set_fed(JOB.id, 41)
    ledger.record_attempts(JOB.id, 3, TRIED)
    ledger.record_requeued(JOB.id, {3})
    begin(ledger, JOB.id, 3)
    # When it ends
    ledger.unregister(JOB.id)
    # Then each key expires
    found = list(ledger.client.scan_iter(f"*{JOB.id}*"))
    assert len(found) == 7
    assert all(6 * 86400 < int(ledger.client.ttl(key)) <= 7 * 86400 for key in found), found
    # And when it is opened again, none does
    ledger.register(JOB.id)
    assert all(int(ledger.client.ttl(key)) == -1 for key in ledger.client.scan_iter(f"*{JOB.id}*"))


def test_bytes_of_other_programs_in_the_ledger_are_ignored(ledger: Ledger) -> None:
    # Given entries that are no names, no numbers and no UTF-8
    ledger.register(JOB.id)
    ledger.client.sadd(NAMES.jobs, b"\xff\xfe", "../x", "a b")
    ledger.mark_failed(JOB.id, 3, "why")
    ledger.client.hset(NAMES.field(JOB.id, "failed"), mapping={b"\xff": b"\xfe", "x": "y", "7": b"\xff"})
    # When / Then
    assert ledger.jobs() == {JOB.id}
    assert ledger.failed(JOB.id) == {3: "why", 7: "\ufffd"}


def test_an_emptied_redis_differs_from_a_job_without_tiles(ledger: Ledger, redis_client: "redis.Redis") -> None:
    # Given a job of which nothing is done
    ledger.sync(JOB, bits(JOB, set()), {}, b"")
    assert ledger.is_synced(JOB.id)
    # When Redis is emptied
    redis_client.flushall()
    # Then the ledger says so
    assert not ledger.is_synced(JOB.id)


def test_a_tile_is_claimed_by_one_message_until_it_ends_or_its_time_is_over(ledger: Ledger) -> None:
    # Given a tile that one delivery has claimed
    assert ledger.claim(JOB.id, 3, "first", 60.0)
    # Then no other gets it, of whichever worker, but other tiles are free
    assert starts(ledger.claim(JOB.id, 3, "second", 60.0)) == 0
    assert ledger.claim(JOB.id, 4, "second", 60.0)
    # And who has no claim cannot end it, and who has can
    ledger.end_claim(JOB.id, 3, "second", stored=False)
    assert not ledger.claim(JOB.id, 3, "third", 60.0)
    ledger.end_claim(JOB.id, 3, "first", stored=False)
    # And one that is not kept ends by itself, and one that is kept does not
    assert ledger.claim(JOB.id, 3, "fourth", 0.3)
    ledger.renew_claims([(JOB.id, 4)], 600.0)
    assert int(ledger.client.pttl(NAMES.claim(JOB.id, 4))) > 60_000
    deadline = time.monotonic() + 30
    while not ledger.claim(JOB.id, 3, "fifth", 60.0):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not ledger.claim(JOB.id, 4, "fifth", 60.0)
    ledger.renew_claims([(JOB.id, 9)], 60.0)
    assert ledger.claim(JOB.id, 9, "sixth", 60.0)


def test_a_stored_tile_is_done_whatever_token_holds_the_claim(ledger: Ledger) -> None:
    # Given a tile that another token has claimed since
    ledger.claim(JOB.id, 3, "second", 60.0)
    # When the first, who had lost it, has stored it all the same
    ledger.end_claim(JOB.id, 3, "first", stored=True)
    # Then it is done, and the claim is the other's still
    assert done_tiles(ledger, JOB) == {3}
    assert ledger.client.get(NAMES.claim(JOB.id, 3)) == b"second"


def test_an_ended_tile_cannot_be_claimed(ledger: Ledger) -> None:
    # Given a stored tile, a failed one, and a cancelled job
    ledger.end_claim(JOB.id, 1, "token", stored=True)
    ledger.mark_failed(JOB.id, 2, "why")
    ledger.cancel(OTHER.id)
    # When they are asked for
    # Then nobody gets them
    assert not ledger.claim(JOB.id, 1, "a", 60.0)
    assert not ledger.claim(JOB.id, 2, "a", 60.0)
    assert not ledger.claim(OTHER.id, 1, "a", 60.0)
    # And once they are reopened, they can be claimed at once
    ledger.reopen(JOB.id, {1, 2})
    ledger.register(OTHER.id)
    assert all(ledger.claim(job, number, "b", 60.0) for job, number in ((JOB.id, 1), (JOB.id, 2), (OTHER.id, 1)))


def test_every_key_the_ledger_writes_is_listed(ledger: Ledger) -> None:
    # Given a ledger of which every part was used
    ledger.register(JOB.id)
    ledger.begin_submission(JOB.id)
    ledger.sync(JOB, bits(JOB, {1}), {2: "why"}, b"")
    ledger.record_attempts(JOB.id, 3, TRIED)
    ledger.record_requeued(JOB.id, {3})
    ledger.claim(JOB.id, 3, "token", 60.0)
    ledger.begin(JOB.id, [3])
    presence = Presence(ledger.client, NAMES)
    presence.worker_heartbeat("cpu-1@here")
    presence.report_storage_error("cpu-1@here", NoBucket("none"))
    ledger.register(OTHER.id)
    ledger.cancel(JOB.id)
    # When Redis is asked for its keys
    found = {
        key.decode().replace("f0", "<farm>").replace(JOB.id, "<job>").replace(OTHER.id, "<job>")
        for key in contents(ledger)
    }
    found = {key.replace("claim:3", "claim:<number>") for key in found}
    # Then each is in the list of keys.py
    listed = {line.split("  ")[0].strip() for line in (keys.__doc__ or "").replace("    ", "\n").splitlines()}
    assert len(found) == 13
    assert found <= listed
