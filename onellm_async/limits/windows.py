"""Windows: at most so many requests in any so many seconds. Evidence, and its refutation. Pure.

A window shows itself by a silence: many requests were accepted, then none for a while, then many again, more than a
token bucket that gives nothing for so long could have saved. The silence ends when the oldest requests leave the
window. So for each number n, the n-th last request before the silence and the end of the silence give a length. The
smallest n that no record of accepted requests contradicts is the window.

A window (n, w) lets the next request be sent no earlier than w seconds after the n-th last one. What is refuted is
corrected: a 429 although the window should have opened makes w longer (a *fixed* window is found so: its period fits,
whatever its phase); a 429 long before n requests makes n smaller. A refused trial costs one 429. Until w is certain,
shorter lengths are tried. From time to time .8 of it is tried, whatever is known: a limit that rose in any way accepts
that. Each success squares the step, then one request more than n is tried, twice as many more after each success. A
fixed window accepts some bursts that come too soon, so a shorter length is on probation for six rounds.

One silence is little evidence: the service may have been down. So in its first wait, a window of more than a minute is
doubted by single requests, and one that is accepted refutes it.
"""

from itertools import pairwise

from onellm_async.limits.send_log import SendLog

ROUND_SECONDS = (
    1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40, 50, 60, 75, 90, 100, 120, 150, 180, 240, 300, 400, 500, 600, 900, 1200,
    1800, 2700, 3600,
)  # fmt: skip
"""Lengths that a window probably has."""
KNOCK_SECONDS = tuple(seconds for seconds in ROUND_SECONDS if seconds not in {6, 8, 12, 75, 90, 100, 150, 240, 400})
"""Lengths that are looked for first."""
NEVER = float("inf")
FEW = 3
"""Requests of a small window, at most: it is full or it is not, and one request more or less is much."""


def just_after(seconds: float) -> float:
    """A moment so shortly after a round number of seconds that clocks and travel times may differ."""
    return 1.002 * seconds + 0.01


class Window:
    """At most `count` requests in any `seconds`.

    Args:
        count: Number of requests.
        shortest: The window is longer than so many seconds.
        seconds: Its length, at most.

    Attributes:
        count: Number of requests.
        shortest: The window is longer than so many seconds.
        seconds: Its length, as it is kept.
        rounds: Times that `count` requests were accepted as expected; -1 before the first.
        stretched: Times in a row that it had to be made longer.
        kept: Requests that were accepted as expected since it was made longer.
        trial: A shorter length that is tried now; None if none is.
        extra_at: When the first of more than `count` requests was sent to try whether they are accepted.
        knocks_at_once: Whether the knock after the next 429 goes at once: it may come at random.
    """

    MIN_ASKED = 40
    """Requests between two trials of a higher limit, at least; twice the count if that is more. A shorter length is
    tried, and a larger count after one was accepted."""
    MAX_PATIENCE = 8
    """Factor of that number after refused trials, at most; it doubles with each."""
    RISE_WITHIN = 180.0
    """Seconds between two trials, at most, unless that number takes longer."""
    RISE = 0.8
    """Share of its length that such a trial takes. It is squared with each one that is accepted."""
    PROBATION = 6
    """Rounds in which a shorter length that was accepted may still be refuted. So many bursts, each .8 of a fixed
    window after the one before, can lie in windows of their own, but no more."""
    MAX_RISE = 0.4
    """The smallest such share."""
    EARLY = 0.995
    """A request that is sent sooner than this share of the length is one more than `count`."""
    KNOCK_AFTER = 60.0
    """Seconds after the last request in which a window is doubted that was concluded from one silence only."""
    MAX_ROUND = 2.0
    """A first round that takes so many times the length confirms nothing."""
    LARGE = 24
    """Requests from which a window was looked for in short steps, so that a round length is its length."""
    UNSURE = 0.25
    """A round length of a smaller window is tried again if its bounds are further apart than this share."""
    STEADY = 8
    """Requests, at least, that must be accepted as expected until it counts as found."""
    MAX_BELIEF = 32
    """429s while it is not full of which one is doubted, at most; they double with each that was no accident. Where
    others use the window, none is."""
    SPREAD = 0.05
    """A length whose bounds are closer than this share needs no trial."""

    __slots__ = (
        "_asked",
        "_before_rise",
        "_belief",
        "_extra",
        "_is_bold",
        "_is_extra_sure",
        "_is_length_due",
        "_knocked_at",
        "_patience",
        "_planned_at",
        "_proven_at",
        "_reduced_from",
        "_rise",
        "_sent_in_round",
        "_tried_at",
        "_unasked",
        "count",
        "extra_at",
        "kept",
        "knocks_at_once",
        "rounds",
        "seconds",
        "shortest",
        "stretched",
        "trial",
    )

    def __init__(self, count: int, shortest: float, seconds: float) -> None:
        self.count: int = count
        self.shortest: float = shortest
        self.seconds: float = seconds
        self.rounds: int = -1
        self.stretched: int = 0
        self.kept: int = 0
        self._before_rise: list[float] = []
        self._proven_at = 0
        self.trial: float | None = None
        self.extra_at: float | None = None
        self.knocks_at_once: bool = False
        self._unasked = 0
        self._belief = 1
        self._sent_in_round = 0
        self._tried_at: float | None = None
        self._is_bold = False
        self._is_extra_sure = False
        self._is_length_due = True
        self._extra = 0
        self._reduced_from = 0
        self._knocked_at = -NEVER
        self._asked = 0
        self._patience = 1
        self._planned_at = -NEVER
        self._rise = self.RISE

    def earliest(self, log: SendLog, ack: float) -> float:
        """When the next request may be sent."""
        first = log.last(self.count + self._extra)
        if first is None:
            return -NEVER
        at = first + self.seconds
        if self.trial is not None and first + self.trial >= self._planned_at:
            # Once it was kept to for a round, its 429 must have had time to come. What could have been sent before it
            # was planned waits for the whole length: it would try far more than the trial.
            at = min(at, max(first + self.trial, -NEVER if self._tried_at is None else self._tried_at + ack))
        if self.rounds < 0:
            at = min(at, self._next_knock(log))
        return at if self.extra_at is None else min(at, self.extra_at + ack)

    def _next_knock(self, log: SendLog) -> float:
        """When to knock in the first full wait: one silence is little evidence, the service may have been down."""
        last = log.last(1) or 0.0
        refused = max(last, self._knocked_at)
        return refused + max(self.KNOCK_AFTER, 0.1 * (refused - last))

    def expected(self, number: int, log: SendLog, now: float) -> float:
        """When the `number`-th next request may be sent if all before it are sent as early as they may."""
        rounds, rest = divmod(number - 1, self.count)
        first = log.last(self.count - rest)
        at = now if first is None else first + self.seconds
        if self.rounds < 0:
            at = min(at, max(now, self._next_knock(log)))
        return at + rounds * self.seconds

    def sent(self, now: float, log: SendLog) -> None:
        """Records that a request is sent; `log` does not know of it yet."""
        if self.rounds < 0 and not self._extra and self._is_knock(now, log):
            return
        if self._extra and self.extra_at is None:
            first = log.last(self.count + self._extra - 1)
            if first is not None and now - first < self.EARLY * self.seconds:
                self.extra_at, self._is_extra_sure = now, now - first < self.shortest
        if self.trial is not None:
            first = log.last(self.count)
            limit = min(1.05 * self.trial, 0.99 * self.seconds)
            self._is_bold = self._is_bold or (first is not None and now - first < limit)
        self._sent_in_round += 1
        self._asked += 1
        if self._sent_in_round >= self.count:
            self._end_round(now, log)

    def _is_knock(self, now: float, log: SendLog) -> bool:
        first = log.last(self.count)
        if first is None or now - first >= self.EARLY * (self.seconds if self.trial is None else self.trial):
            return False
        self._extra, self.extra_at, self._is_extra_sure = 1, now, now - first < self.shortest
        self._knocked_at = now
        return True

    def _end_round(self, now: float, log: SendLog) -> None:
        self._sent_in_round = 0
        first = log.last(self.count - 1)
        if self.rounds < 0 and first is not None and now - first > self.MAX_ROUND * self.seconds:
            return  # there was little to send, so it was never kept to
        self.kept += self.count
        if self.kept >= self.STEADY:
            self.stretched = 0
        self.rounds += 1
        if self.rounds >= self._proven_at:
            self._before_rise.clear()
        if self.trial is None:
            self._plan_trial(now)
        elif self._tried_at is None:
            if self._is_bold:
                self._tried_at = now
            else:
                self.trial = None
        if self.rounds >= 1 and self.trial is None and not self._extra and self._is_rise_due:
            self._asked = 0
            if self._is_length_due or self.count <= FEW:  # for few, one request more would be far more
                self._plan(self.RISE * self.seconds, now)
                self._patience = min(self.MAX_PATIENCE, 2 * self._patience)
            else:
                self._extra, self._is_length_due = 1, True

    @property
    def _is_rise_due(self) -> bool:
        """Whether enough was asked since the last trial of a higher limit, or time has passed."""
        asked = max(self.MIN_ASKED, 2 * self.count)
        return self._asked >= min(asked * self._patience, max(asked, self.RISE_WITHIN * self.count / self.seconds))

    def _plan(self, trial: float | None, now: float) -> None:
        self.trial, self._is_bold, self._planned_at = trial, False, now

    def _plan_trial(self, now: float) -> None:
        is_small = self.count <= FEW
        spread = self.SPREAD if not is_small else 0.02
        if self._rise < self.RISE:
            self._plan(self._rise * self.seconds, now)
        if (
            self.trial is not None
            or self.rounds < (not is_small)
            or self.seconds - self.shortest <= spread * self.seconds
        ):
            return
        is_wide = self.count < self.LARGE and self.seconds - self.shortest > self.UNSURE * self.seconds
        is_unsure = is_wide or not self._is_round
        trial = self._round_trial(ROUND_SECONDS if is_unsure else KNOCK_SECONDS)
        if trial is None and is_unsure:
            trial = (self.shortest + self.seconds) / 2
        self._plan(trial, now)

    @property
    def _is_round(self) -> bool:
        return any(abs(self.seconds - seconds) < 0.02 * seconds for seconds in ROUND_SECONDS)

    def _round_trial(self, rounds: tuple[int, ...]) -> float | None:
        """The longest of these numbers of seconds that the window may have, and is shorter than now."""
        return next(
            (just_after(seconds) for seconds in reversed(rounds) if self.shortest < seconds < 0.98 * self.seconds),
            None,
        )

    def try_round_number(self) -> None:
        """Tries a round number of seconds at once, if the window may have it."""
        if not self._is_round:
            self._plan(self._round_trial(ROUND_SECONDS), -NEVER)

    def advance(self, now: float, ack: float) -> bool:
        """Draws the conclusions from trials that no 429 has refuted by now. Returns whether the window still holds."""
        if self._tried_at is not None and now >= self._tried_at + ack - 1e-9:
            assert self.trial is not None  # noqa: S101  # it is what was tried
            before, self.seconds, self.trial, self._tried_at = self.seconds, self.trial, None, None
            if self.seconds <= 1.01 * self.shortest or self._before_rise:  # the limit rose, as far as is known
                self._before_rise.append(before)
                self._proven_at = self.rounds + self.PROBATION
                self.shortest, self._patience, self._rise = 0.0, 1, max(self.MAX_RISE, self._rise**2)
                self._is_length_due = False
        if self.extra_at is not None and now >= self.extra_at + ack - 1e-9:
            if self.rounds < 0 and self._is_extra_sure:
                return False
            if self._is_extra_sure:  # else it may have been the length that was shorter
                self.count = max(self.count + self._extra, self._reduced_from)
                self._reduced_from = 0
                self._extra, self._patience = max(1, min(2 * self._extra, self.count // 4)), 1
            self.extra_at = None
        return True

    def refute_extra(self) -> None:
        """More than `count` are not accepted."""
        self._end_extra()
        self._patience = min(self.MAX_PATIENCE, 2 * self._patience)

    def refute_trial(self, waited: float) -> None:
        """The window is longer than `waited` seconds."""
        self.shortest = max(self.shortest, waited)
        self.trial = self._tried_at = None
        self._rise = self.RISE

    def fall_back(self, waited: float) -> None:
        """Takes back a shorter length that was accepted, if a 429 refutes it: a fixed window accepts some, not always.

        Args:
            waited: Seconds after the `count`-th last request before it.
        """
        if self._before_rise and waited >= self.seconds - 1e-9:  # else it was sent under another length
            self.shortest, self.seconds = max(self.shortest, self.seconds), self._before_rise.pop()
            self._rise, self._is_length_due = self.RISE, True
            self.end_trials()

    def doubt(self) -> None:
        """Records a 429 while it is not full, and decides whether the knock after it goes at once."""
        self._unasked += 1
        self.knocks_at_once = self._may_be_asked and self._unasked >= self._belief

    def judge(self, *, was_random: bool) -> None:
        """Records whether a knock at once was accepted: then the 429 before it had come at random."""
        self._unasked = 0
        self._belief = 1 if was_random else min(self.MAX_BELIEF, 2 * self._belief)
        self.knocks_at_once = was_random and self._may_be_asked

    @property
    def _may_be_asked(self) -> bool:
        return self.rounds > 0 and self.count > FEW

    def shrink(self, count: int) -> None:
        """No more than `count` are accepted."""
        self.count, self.rounds = count, min(self.rounds, 0)
        self.end_trials()
        self.refute_extra()

    def reduce(self, count: int) -> None:
        """No more than `count` are accepted now. The next round tries one more: it may have been an outage."""
        before = self.count
        self.shrink(count)
        self._extra, self._reduced_from = 1, before

    def declare(self, count: int) -> None:
        """The service says that `count` are accepted."""
        self.count, self.rounds = count, max(self.rounds, 0)
        self.end_trials()
        self._end_extra()

    def measure(self, shortest: float, seconds: float) -> None:
        """Replaces the length, because the silence was another one than expected."""
        self.shortest, self.seconds, self.rounds = shortest, seconds, -1
        self.end_trials()
        self.refute_extra()

    def _end_extra(self) -> None:
        self._extra, self.extra_at, self._reduced_from = 0, None, 0

    def end_trials(self) -> None:
        """Begins another round without a trial."""
        self._sent_in_round, self.trial, self._tried_at = 0, None, None

    def describe(self) -> str:
        """The window in words."""
        seconds = next((number for number in ROUND_SECONDS if abs(number - self.seconds) < 0.02 * number), None)
        length = f"{self.seconds:.3g}" if seconds is None else str(seconds)
        rounds = self.rounds + 1
        kept = f", kept {rounds} time{'s' * (rounds != 1)}" if rounds > 0 else ""
        return f"{self.count} request{'s' * (self.count != 1)} in any {length} s{kept}"


class Windows:
    """The windows that were found, at most four. A request waits for all of them.

    Args:
        log: The accepted requests.
    """

    MAX_WINDOWS = 4
    """Windows that are kept."""
    FULL = 0.9
    """Share of a window's count from which a 429 is blamed on it."""
    SLACK = 1.02
    """Factor by which a length may be exceeded, as travel times differ."""
    FEW_SLACK = 1.1
    """The same for a window of few requests, whose length is found by trials."""
    MAX_SILENCE = 4.0
    """Lengths of a window within which such a silence and the wait before it are looked for."""
    REST = 0.5
    """Share of its length without a request before those that fill a window whose count fell. Else some requests before
    may have been in it, too: a fixed window has them from another phase."""
    MAX_STRETCH = 1.5
    """Factor of its length by which a window may turn out to be longer."""
    MAX_SMALL_STRETCH = 3.0
    """The same for a window of up to three requests."""
    MAX_SINGLE = 16.0
    """The same for a window of one request after a knock that was in vain."""
    SHORTEST = 0.01
    """Seconds of the shortest window that is looked for."""
    MAX_STRETCHED = 2
    """Times in a row that a window may turn out to be longer before it is dropped."""

    __slots__ = ("_log", "all")

    def __init__(self, log: SendLog) -> None:
        self._log = log
        self.all: list[Window] = []

    def __bool__(self) -> bool:
        return bool(self.all)

    def earliest(self, ack: float) -> float:
        """When the next request may be sent."""
        return max((window.earliest(self._log, ack) for window in self.all), default=-NEVER)

    def expected(self, number: int, now: float) -> float:
        """When the `number`-th next request may be sent."""
        return max((window.expected(number, self._log, now) for window in self.all), default=-NEVER)

    def sent(self, now: float) -> None:
        """Records that a request is sent; the log does not know of it yet."""
        for window in self.all:
            window.sent(now, self._log)

    def advance(self, now: float, ack: float) -> None:
        """Draws the conclusions from trials that no 429 has refuted by now."""
        self.all = [window for window in self.all if window.advance(now, ack)]

    @property
    def rate(self) -> float:
        """Requests per second that all of them allow in the long run."""
        return min((window.count / max(window.seconds, 1e-3) for window in self.all), default=NEVER)

    def stretch(self, window: Window, shortest_at: float, end: float, *, is_sure: bool = True) -> bool:
        """Makes a window longer that opened a little later than expected. One that keeps doing so is dropped.

        Args:
            window: The window.
            shortest_at: When the last request was sent that got a 429.
            end: When the first request was sent that was accepted again.
            is_sure: Whether a 429 at random is ruled out. If not, it is no reason to drop the window.

        Returns:
            Whether it did. If not, it opened as expected or far later.
        """
        first = self._log.last(window.count + 1)
        longest = (self.MAX_STRETCH if window.count > FEW else self.MAX_SMALL_STRETCH) * window.seconds
        if first is None or not window.seconds < end - first < longest:
            return False
        window.shortest = max(window.shortest, shortest_at - first)
        window.seconds = end - first
        if is_sure:
            self._stretched(window)
        return True

    def _stretched(self, window: Window) -> None:
        """Drops a window that keeps turning out to be longer: others use the key, or there is no window."""
        window.stretched += 1
        window.kept = 0
        if window.stretched > self.MAX_STRETCHED:
            self.all.remove(window)

    def reduce(self, window: Window, shortest_at: float, end: float) -> bool:
        """Lowers the count of a window that was kept to, if a silence that began too early fits its length.

        Earlier requests contradict every lower count. So what fills the window is told by the rest before it.

        Args:
            window: The window.
            shortest_at: When the last request was sent that got a 429.
            end: When the first request was sent that was accepted again.

        Returns:
            Whether it did. If not, the silence has another cause.
        """
        if window.rounds < 1:
            return False
        times = self._log.between(end - self.MAX_SILENCE * window.seconds, shortest_at)
        count = next(
            (
                number
                for number, (before, at) in enumerate(pairwise(reversed(times)), 1)
                if before - at >= self.REST * window.seconds
            ),
            0,
        )
        if not 0 < count < self.FULL * window.count:
            return False
        first = times[-count]
        if not shortest_at - first < window.seconds < self.SLACK * (end - first):
            return False
        window.reduce(count)
        return True

    def refute_extra(self, sent_at: float) -> bool:
        """Whether a 429 refutes no more than the trial of a larger count."""
        tried = [window for window in self.all if window.extra_at is not None and sent_at >= window.extra_at - 1e-9]
        for window in tried:
            window.refute_extra()
        return bool(tried)

    def refute_trials(self, sent_at: float) -> bool:
        """Whether a 429 refutes trials of a shorter length: without them, its request would have been sent later."""
        tried = False
        for window in self.all:
            first = self._log.last_until(sent_at, window.count)
            if window.trial is not None and first is not None and sent_at - first < window.seconds - 1e-9:
                window.refute_trial(sent_at - first)
                tried = True
        return tried

    def fullest(self, sent_at: float) -> Window:
        """The window that is fullest for its count."""
        return max(self.all, key=lambda window: self.share(window, sent_at))

    def share(self, window: Window, sent_at: float) -> float:
        """Requests in the window as a share of its count."""
        return self._log.count(sent_at, self.SLACK * window.seconds) / window.count

    def is_full(self, window: Window, sent_at: float) -> bool:
        """Whether a window of few requests may explain a 429, if it is a little longer than it is kept."""
        return self._log.count(sent_at, self.FEW_SLACK * window.seconds) >= window.count

    def add(self, start: float, shortest_at: float, end: float, burst_at: float) -> Window:
        """Concludes from a silence what the window is.

        Args:
            start: When the first request of the silence was sent that got a 429.
            shortest_at: When the last such request was sent.
            end: When the first request was sent that was accepted again.
            burst_at: When the burst before the silence began.
        """
        log = self._log
        before = log.accepted_until(end) - log.accepted_until(end - 1e-9)
        total = log.accepted_until(end) - before
        first = total - log.accepted_until(burst_at - 1e-9)
        known = len(log.times) - (log.total - total)
        for window in self.all:
            if window.rounds < 1 and known >= window.count:
                sent = self._nth_before(window.count, total)
                window.measure(shortest_at - sent, end - sent)
                return window
        count = min(max(1, first), max(1, known))
        for candidate in self._candidates(count, known, start):
            seconds = end - self._nth_before(candidate, total)
            if log.max_count(0.98 * seconds, start) <= candidate:
                count = candidate
                break
        sent = self._nth_before(count, total)
        window = Window(count, shortest_at - sent, end - sent)
        window.try_round_number()
        self.keep(window)
        return window

    def keep(self, window: Window) -> None:
        """Keeps to a window from now on, in place of one of about its length."""
        others = [other for other in self.all if not 0.9 < other.seconds / window.seconds < 1.1]
        self.all = [*others[-self.MAX_WINDOWS + 1 :], window]

    def add_single(self, shortest_at: float, end: float) -> bool:
        """Adds a window of one request, if none is known. Returns whether it did.

        Args:
            shortest_at: When the last request was sent that got a 429.
            end: When the second request was sent that was accepted.
        """
        first = self._log.last(2)
        if self.all or first is None or not first < shortest_at < end:
            return False
        self.all = [Window(1, shortest_at - first, end - first)]
        return True

    def measure_single(self, window: Window, shortest_at: float, end: float) -> bool:
        """Measures a window of one request again, which is as long as the silence after it. Returns whether it did.

        Args:
            window: The window.
            shortest_at: When the last request was sent that got a 429.
            end: When the first request was sent that was accepted again.
        """
        first = self._log.last(2)
        longest = self.MAX_SINGLE * window.seconds
        if window.count != 1 or first is None or not window.seconds < end - first < longest:
            return False
        window.measure(shortest_at - first, end - first)
        self._stretched(window)
        return True

    def _nth_before(self, number: int, total: int) -> float:
        """When the `number`-th last of the first `total` requests was sent."""
        log = self._log
        return log.times[total - number - (log.total - len(log.times))]

    def _candidates(self, burst: int, known: int, until: float) -> list[int]:
        """Counts that a window may have: the burst, and the most that was accepted in any of a series of lengths."""
        found, seconds = {burst}, self.SHORTEST
        while seconds < 1.42 * (until - self._log.times[0]):
            found.add(self._log.max_count(seconds, until))
            seconds *= 1.42
        return sorted(candidate for candidate in found if 0 < candidate <= known)

    def move_clock(self) -> None:
        """Continues with a clock that may have been set back: what was tried is dropped."""
        for window in self.all:
            window.end_trials()
            window.extra_at = None
