"""The pure board: what it grants, to which participant, and when each has to come again."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm_async.limits.policy import Limits
from onellm_async.limits.quota import Declaration, Demand, Grant, RateLimitReport
from onellm_async.quota.board import LEASE, MAX_PARTICIPANTS, Board
from onellm_async.quota.host_file import HALF, HEADER
from onellm_async.wire import dump_json, parse_json
from tests.quota.playing import Player, jain, limited, new_board, play, visit
from tests.quota.visits import FixedRandom, random_visits

PER_SECOND = Limits(requests_per_minute=600, burst=40)
DEFAULT = 1


def busy(number, lane=DEFAULT, waiting=10**6, **how):
    return [
        Player(f"client-{index}", [waiting * (lane == each) for each in range(3)], **how) for index in range(number)
    ]


def granted(players):
    return sorted(at for player in players for at in player.granted_at)


@given(
    st.floats(0.05, 200),
    st.integers(1, 600),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.003, 0.08]),
    st.integers(0, 2),
)
@settings(max_examples=40)
def test_no_window_sees_more_permits_than_the_limit_allows(rate, burst, number, lateness, lane):
    limits = Limits(requests_per_minute=rate * 60, burst=burst)
    players = busy(number, lane)
    play(new_board(limits), players, 100 / rate, lateness=lateness)
    level, last = 0.0, 0.0
    for at in granted(players):
        level = max(0.0, level - (at - last) * rate) + 1
        last = at
        assert level <= burst + 1e-6


@pytest.mark.parametrize("number", [1, 4, 16, 64])
def test_the_whole_rate_is_used_by_any_number_of_participants_and_shared_equally(number):
    players = busy(number)
    visits = play(new_board(PER_SECOND), players, 100)
    assert len(granted(players)) >= 0.995 * (100 * 10 + 38)
    assert jain([sum(at > 10 for at in player.granted_at) for player in players]) > 0.99
    assert visits <= (1.1 if number == 1 else 1.6 if number <= 16 else 3.2) * len(granted(players))


@given(st.integers(2, 16), st.integers(0, 2**32))
@settings(max_examples=20)
def test_any_two_hundred_permits_are_shared_fairly_whatever_the_delays_of_the_visits(number, seed):
    random = Random(seed)
    players = busy(number)
    play(new_board(PER_SECOND), players, 120, lateness=random.uniform(0, 0.01))
    times = granted(players)
    start = random.randrange(100, len(times) - 200)
    counts = [sum(times[start] <= at < times[start + 200] for at in player.granted_at) for player in players]
    assert jain(counts) >= 0.99


def test_lanes_share_the_rate_sixteen_to_four_to_one_over_all_participants():
    players = [*busy(3, lane=0), *busy(3, lane=1), *busy(3, lane=2)]
    for number, player in enumerate(players):
        player.name = f"client-{number}"
    play(new_board(PER_SECOND), players, 300)
    shares = [sum(len(player.granted_at) for player in players[lane * 3 : lane * 3 + 3]) for lane in range(3)]
    assert [round(21 * share / sum(shares), 1) for share in shares] == pytest.approx([16, 4, 1], abs=0.3)


def test_an_interactive_request_finds_a_token_at_once_beside_saturating_batches():
    board, batches = new_board(PER_SECOND), busy(15, lane=2)
    chatter = Player("web", [1, 0, 0])
    visit(board, chatter, 0.0)
    play(board, batches, 60)
    for number in range(5):
        chatter.waiting[0] = 1
        assert visit(board, chatter, 60 + number * 2).permits == 1
        play(board, batches, 62 + number * 2, now=60 + number * 2)


def test_a_script_with_a_thousand_requests_does_not_starve_a_worker_with_one():
    board, script = new_board(PER_SECOND), busy(1)
    play(board, script, 60)
    worker = Player("worker", [0, 1, 0])
    grant = visit(board, worker, 60.0)
    assert grant.permits or grant.again_in <= 0.2


def test_a_rate_that_rises_is_used_by_those_who_come_first():
    board, players = new_board(Limits(requests_per_minute=60, burst=2)), busy(16)
    play(board, players, 60)
    board.visit("another", Demand(), 60.0, Declaration(Limits(requests_per_minute=6000), explicit=True), 0.0)
    grant = visit(board, players[0], 60.1)
    assert grant.again_in < 0.02


def test_a_token_that_is_left_over_goes_to_the_next_visitor():
    board = new_board(PER_SECOND)
    first, second = busy(2)
    play(board, [first, second], 60)
    first.stops_at = 60
    grant = visit(board, second, 60.5)
    assert grant.permits >= 3


def test_a_participant_that_dies_is_passed_over_at_once_and_dropped_after_its_lease():
    board, players = new_board(PER_SECOND), busy(4)
    for player in players[2:]:
        player.stops_at = 30
    play(board, players, 60)
    after = [at for at in granted(players) if 31 <= at < 60]
    assert len(after) >= 0.99 * 290
    assert len(board.rows) == 2
    assert set(board.rows) == {"client-0", "client-1"}


def test_a_participant_that_stood_still_returns_to_its_place():
    board, players = new_board(PER_SECOND), busy(4)
    play(board, players, 30)
    play(board, players[:3], 36, now=30)
    play(board, players, 100, now=36)
    late = [sum(at >= 40 for at in player.granted_at) for player in players]
    assert jain(late) > 0.99


def test_a_participant_that_was_idle_cannot_save_up_turns():
    board, players = new_board(PER_SECOND), busy(2)
    play(board, players[:1], 50)
    play(board, players, 60, now=50)
    assert len([at for at in players[1].granted_at if at < 60]) <= 55


@given(st.integers(65, 300))
@settings(max_examples=5)
def test_the_table_is_bounded_and_its_image_fits_into_its_place(number):
    board = Board(Declaration(Limits(requests_per_minute="auto"), explicit=True), 12345.678901, Random(0))
    for index in range(number):
        player = Player(f"a-host-with-20-chars:{2**22 + index}:{index}:abcdef", [3, 48, 9])
        board.visit(player.name, player.demand(ages=(0.1234567, 1.23, 9.1)), 12345.7 + index / 7, player.declaration, 0)
    assert len(board.rows) <= MAX_PARTICIPANTS
    assert len(dump_json(board.dump())) < (HALF - HEADER.size) * 0.5


@given(st.integers(0, 10**6))
@settings(max_examples=15)
def test_a_board_that_was_stored_and_loaded_goes_on_alike(seed):
    random = FixedRandom()
    kept, stored = None, None
    grants: list[Grant] = []
    for number, step in enumerate(random_visits(seed, 60, grants=grants)):
        random.value = step.draw
        if kept is None:
            kept = Board(step.declaration, step.at, random, age=step.declared_age)
            stored = Board(step.declaration, step.at, random, age=step.declared_age)
        arguments = (step.name, step.demand, step.at, step.declaration, step.declared_age)
        grants.append(kept.visit(*arguments))
        assert stored.visit(*arguments) == grants[-1], number
        stored = Board.load(parse_json(dump_json(stored.dump())), random)


def test_fields_and_columns_of_a_newer_version_are_kept():
    board = new_board(PER_SECOND)
    visit(board, Player("old", [0, 1, 0]), 0.0)
    image = {**board.dump(), "invented": {"later": [1, 2]}}
    image["rows"]["old"].append("a column")
    loaded = Board.load(image, Random(0))
    visit(loaded, Player("old", [0, 1, 0]), 1.0)
    assert loaded.dump()["invented"] == {"later": [1, 2]}
    assert loaded.dump()["rows"]["old"][-1] == "a column"


@pytest.mark.parametrize("step", [-1e6, -30.0, -0.2])
def test_a_clock_that_is_set_back_counts_no_refill_and_stops_nothing(step):
    start = 2e6
    board, players = new_board(PER_SECOND, start), busy(3)
    play(board, players, start + 60, now=start)
    before = len(granted(players))
    play(board, players, start + 90 + step, now=start + 60 + step)
    more = len(granted(players)) - before
    assert 0.98 * 297 <= more <= 303


def test_a_clock_that_is_set_forward_grants_a_burst_at_most():
    board, players = new_board(PER_SECOND), busy(3)
    play(board, players, 60)
    before = len(granted(players))
    play(board, players, 3690, now=3660)
    assert len(granted(players)) - before <= 300 + 40


@pytest.mark.parametrize("number", [1, 3, 4])
def test_the_first_burst_of_batches_is_paced_until_it_is_confirmed(number):
    players = busy(number, lane=2)
    play(new_board(Limits(requests_per_minute=6, burst=600)), players, 20)
    assert 195 <= len(granted(players)) <= 205
    assert jain([len(player.granted_at) for player in players]) > 0.99


def test_another_lane_uses_the_first_burst_at_once_and_delays_no_batch():
    board, (batch,) = new_board(Limits(requests_per_minute=6, burst=600)), busy(1, lane=2)
    play(board, [batch], 5)
    web = Player("web", [0, 40, 0])
    assert visit(board, web, 5.0).permits == 40
    before = len(batch.granted_at)
    play(board, [batch], 10, now=5.05)
    assert len(batch.granted_at) - before >= 48


def test_a_429_empties_the_bucket_for_all():
    board, players = new_board(PER_SECOND), busy(2)
    visit(board, players[0], 0.0, rate_limited=[limited()])
    assert visit(board, players[1], 0.0).permits == 0


def test_a_retry_after_holds_all_back():
    board, players = new_board(PER_SECOND), busy(2)
    visit(board, players[0], 0.0, rate_limited=[limited(retry_after=7.5)])
    grant = visit(board, players[1], 1.0)
    assert (grant.permits, grant.again_in, grant.retry_in) == (0, 6.5, 6.5)
    assert visit(board, players[1], 7.5).permits > 0


def test_a_429_of_a_request_sent_before_the_last_one_teaches_nothing():
    board = new_board(PER_SECOND)
    rates = [visit(board, busy(1)[0], 1.0, rate_limited=[limited(sent=sent)]).rate for sent in (0.1, 0.2, 0.3)]
    assert rates == [10, 10, 10]


def test_a_declared_rate_that_is_too_high_is_corrected_for_all_and_recovers():
    board, (player,) = new_board(PER_SECOND), busy(1)
    now = 0.0
    for _ in range(4):
        now += 1.0
        grant = visit(board, player, now, rate_limited=[limited()])
    assert grant.rate < 10
    assert grant.wants_answers
    for _ in range(300):
        now += 1.0
        grant = visit(board, player, now, answered=[(0.1, 0.0)])
    assert grant.rate == pytest.approx(10)
    assert not grant.wants_answers


def test_a_strict_limit_is_held_whatever_429s_say():
    board, (player,) = new_board(Limits(requests_per_minute=600, adaptive="off")), busy(1)
    for now in range(1, 9):
        grant = visit(board, player, float(now), rate_limited=[limited()])
    assert grant.rate == pytest.approx(10)


def test_permits_that_are_given_back_are_there_for_others():
    board, (first, second) = new_board(PER_SECOND), busy(2, waiting=48)
    taken = visit(board, first, 100.0).permits
    assert visit(board, second, 100.0).permits == 0
    first.waiting = [0, 0, 0]
    visit(board, first, 100.0, given_back=taken)
    assert visit(board, second, 100.0).permits >= taken - 1


# Declarations


def declare(board, name, per_minute, now, age=0.0, **how):
    declaration = Declaration.of(Limits(requests_per_minute=per_minute, **how))
    return board.visit(name, Demand(), now, declaration, age)


def test_the_newest_declaration_counts_and_an_older_one_undoes_nothing():
    board = new_board(PER_SECOND)
    assert declare(board, "old", 60, 100.0, age=50).rate == pytest.approx(1)
    assert declare(board, "new", 1200, 110.0, age=5).rate == pytest.approx(20)
    assert declare(board, "old", 60, 120.0, age=70).rate == pytest.approx(20)


def test_default_limits_are_no_declaration():
    board = new_board(PER_SECOND)
    assert board.visit("script", Demand(), 100.0, Declaration.of(Limits()), 0.0).rate == pytest.approx(10)
    assert not Declaration.of(Limits(max_concurrency=8, max_pending=3)).explicit
    assert Declaration.of(Limits(), retuned=True).explicit


def test_a_declared_limit_can_become_one_to_be_discovered_and_back():
    board = new_board(PER_SECOND)
    declare(board, "a", "auto", 10.0)
    assert Board.load(board.dump(), Random(0)).dump() == board.dump()
    assert declare(board, "b", 1200, 20.0).rate == pytest.approx(20)


# Tokens per minute


def test_tokens_per_minute_are_shared_too():
    limits = Limits(requests_per_minute=6000, burst=600, tokens_per_minute=6000)
    board, players = new_board(limits), busy(4)
    play_tokens(board, players, 120, tokens=50.0)
    assert len(granted(players)) == pytest.approx((6000 + 120 * 100) / 50, rel=0.02)
    assert jain([sum(at > 10 for at in player.granted_at) for player in players]) > 0.99


def test_tokens_that_were_not_used_are_settled():
    limits = Limits(requests_per_minute=6000, tokens_per_minute=6000)
    board, (player,) = new_board(limits), busy(1)
    charged = visit(board, player, 0.0, tokens=(0, 3000.0, 0)).charged_tokens
    assert charged == 6000
    grant = visit(board, player, 0.1, tokens=(0, 3000.0, 0), settled_tokens=5000.0)
    assert grant.permits == 1


def test_a_request_larger_than_the_bucket_waits_until_it_is_full_then_overdraws_it():
    limits = Limits(requests_per_minute=6000, tokens_per_minute=600)
    board, (player,) = new_board(limits), busy(1)
    assert visit(board, player, 0.0, tokens=(0, 900.0, 0)).charged_tokens == 900
    assert visit(board, player, 0.0, tokens=(0, 900.0, 0)).again_in == pytest.approx(90)


def play_tokens(board, players, until, tokens):
    due = {player.name: 0.0 for player in players}
    while min(due.values()) <= until:
        player = min(players, key=lambda player: due[player.name])
        now = due[player.name]
        grant = visit(board, player, now, tokens=(0, tokens, 0))
        due[player.name] = now + (grant.again_in or 1e-3)


# While the board is out of reach


def test_what_all_sent_alone_in_an_outage_leaves_no_debt():
    board, players = new_board(PER_SECOND), busy(4)
    play(board, players, 60)
    for number, player in enumerate(players):
        visit(board, player, 65.0 + number * 0.1, sent_alone=12, alone_for=5.0 + number * 0.1)
    before = len(granted(players))
    play(board, players, 75.4, now=65.4)
    assert len(granted(players)) - before >= 0.9 * 100


def test_what_was_sent_alone_before_a_lost_board_was_begun_anew_leaves_no_debt():
    board = Board(Declaration(PER_SECOND, explicit=True), 100.0, Random(0), empty=True)
    for number, player in enumerate(busy(4)):
        visit(board, player, 100.0 + number * 0.1, sent_alone=12, alone_for=5.0 + number * 0.1)
    assert board.control.level_at(100.3) >= -1


def test_one_that_alone_was_cut_off_is_charged_for_all_it_sent():
    board, players = new_board(PER_SECOND), busy(2)
    play(board, players, 60)
    play(board, players[:1], 65, now=60)
    level = board.control.level_at(65.0)
    visit(board, players[1], 65.0, sent_alone=25, alone_for=5.0)
    assert board.control.level_at(65.0) <= level - 25


def test_the_lease_is_longer_than_any_lateness_that_counts():
    board, (player, other) = new_board(Limits(requests_per_minute=6, burst=1)), busy(2)
    grant = visit(board, player, 0.0)
    visit(board, other, 1.0)
    visit(board, other, (grant.again_in or 0) + LEASE - 0.01)
    assert player.name in board.rows


def test_while_a_rate_is_searched_those_that_wait_long_look_again_sooner_and_in_their_order():
    discovered = Declaration(Limits(requests_per_minute="auto"), explicit=True)
    board = Board(discovered, 0.0, Random(0))
    now, first = 0.0, None
    for number in range(12):
        now = number / 4
        grant = board.visit("first", Demand(waiting=(0, 1, 0)), now, discovered, now)
        first = now if grant.permits else first
    report = RateLimitReport(now - first, now - first - 0.02)
    board.visit("first", Demand(rate_limited=[report]), now, discovered, now)
    names = [f"client-{number:02}" for number in range(16)]
    waits = [board.visit(name, Demand(waiting=(0, 40, 0)), now, discovered, now).again_in for name in names]
    assert board.control.confidence < 0.5
    others = {name: [board.rows[each] for each in names if each != name] for name in names}
    turns = [board._next_visit(board.rows[name], others[name], (0, 15 * 40, 0), now)[1]
             for name in names]  # fmt: skip
    assert max(turns) > 1
    assert max(waits) < max(turns) / 2
    assert waits == sorted(waits)
