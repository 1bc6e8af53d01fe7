"""The order of service when there is less to play than actors could take."""

from __future__ import annotations

from collections import Counter, deque

from controller.admission import CLAIMS_BELIEVED, CreditQueue


def served(credits: CreditQueue) -> bytes:
    return credits.pop()


def test_credits_starve_nobody_behind_an_actor_that_asks_again_early():
    """An actor that asks again early starves nobody behind it.

    One episode at a time becomes free, and whoever has two on their way ends one, and asks for
    another.
    """
    credits = CreditQueue()
    playing = {name: deque() for name in (b"a", b"b", b"c")}
    got = Counter()
    for name in playing:
        credits.add(name, 4)
    for number in range(60):
        actor = served(credits)
        got[actor] += 1
        playing[actor].append(number)
        if len(playing[actor]) == 2:
            playing[actor].popleft()
            credits.add(actor, 1)
    assert max(got.values()) - min(got.values()) <= 4 and len(got) == 3


def test_each_is_served_in_the_order_of_asking_and_as_often_as_it_asked():
    credits = CreditQueue()
    for name, episodes in ((b"a", 1), (b"b", 2), (b"a", 1)):
        credits.add(name, episodes)
    assert [served(credits) for _ in range(len(credits))] == [
        b"a",
        b"b",
        b"b",
        b"a",
    ] and not credits


def test_a_lost_actor_is_not_served_and_takes_nobodys_place():
    credits = CreditQueue()
    for name, episodes in ((b"a", 2), (b"b", 1), (b"a", 1)):
        credits.add(name, episodes)
    credits.forget(b"a")
    assert [served(credits) for _ in range(len(credits))] == [b"b"]


def test_what_an_actor_keeps_claiming_is_believed_since_its_leases_were_lost():
    credits = CreditQueue()
    credits.add(b"a", 1)
    for _ in range(CLAIMS_BELIEVED - 1):
        credits.hear_claim(b"a", 3)
    assert credits.count(b"a") == 1
    credits.hear_claim(b"a", 3)
    assert credits.count(b"a") == 3


def test_a_claim_that_is_met_in_between_counts_anew():
    """A lease was on its way."""
    credits = CreditQueue()
    for _ in range(3 * CLAIMS_BELIEVED):
        credits.hear_claim(b"a", 1)
        credits.hear_claim(b"a", 0)
    assert credits.count(b"a") == 0


def test_what_a_process_before_it_has_asked_for_under_its_name_is_forgotten():
    credits = CreditQueue()
    for name, episodes in ((b"a", 2), (b"b", 1), (b"a", 2)):
        credits.add(name, episodes)
    credits.hear_claim(b"a", 1)
    assert credits.count(b"a") == 1 and [served(credits) for _ in range(len(credits))] == [
        b"a",
        b"b",
    ]
