"""Cron on the local clock: both nights a year in several zones, after sleep, after the clock was set; held against a model that looks at every minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aipass.sources import cron

# Half an hour, two hours, by day, at midnight, and none; Samoa left out a whole day.
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "America/Santiago", "Africa/Cairo", "Asia/Kolkata", "Pacific/Apia", "UTC"]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("error")


def zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except KeyError:
        pytest.skip(f"this machine knows no zone {name}")


def field(text: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        part, _, step = part.partition("/")
        first, _, last = (f"{low}-{high}" if part == "*" else part).partition("-")
        found |= set(range(int(first), int(last or (high if step else first)) + 1, int(step or 1)))
    return found


def matches(expression: str, local: datetime) -> bool:
    minute, hour, _, _, weekday = expression.split()
    return (
        local.minute in field(minute, 0, 59)
        and local.hour in field(hour, 0, 23)
        and (local.weekday() + 1) % 7 in {day % 7 for day in field(weekday, 0, 7)}
    )


def model(expression: str, begin: float, end: float, where: ZoneInfo) -> list[float]:
    """Every minute looked at: by elapsed time where there is a wildcard, else each local time once a day."""
    found: list[float] = []
    if not cron.is_fixed(expression):
        now = begin // 60 * 60 + 60
        while now <= end:
            if matches(expression, datetime.fromtimestamp(now, where)):
                found.append(now)
            now += 60
        return found
    local = datetime.fromtimestamp(begin, where).replace(
        tzinfo=None, second=0, microsecond=0, fold=0
    ) - timedelta(days=1)
    last = datetime.fromtimestamp(end, where).replace(tzinfo=None) + timedelta(days=1)
    due: set[float] = set()
    while local <= last:
        if matches(expression, local):
            moment = local.replace(tzinfo=where, fold=0).astimezone(UTC)
            if moment.astimezone(where).replace(tzinfo=None) != local:
                # The clock skips it: at the first minute after the gap.
                probe = local
                while (
                    probe.replace(tzinfo=where).astimezone(UTC).astimezone(where).replace(tzinfo=None)
                    != probe
                ):
                    probe += timedelta(minutes=1)
                moment = probe.replace(tzinfo=where).astimezone(UTC)
            due.add(moment.timestamp())
        local += timedelta(minutes=1)
    return sorted(one for one in due if begin < one <= end)


def fired(expression: str, begin: float, end: float, where: ZoneInfo) -> list[float]:
    found = []
    now = cron.next_after(expression, begin, where)
    while now <= end:
        found.append(now)
        now = cron.next_after(expression, now, where)
    return found


def changes(name: str, year: int) -> list[datetime]:
    """The moments at which a zone's clock is changed in a year."""
    where = zone(name)
    found = []
    now = datetime(year, 1, 1, tzinfo=UTC)
    while now.year == year:
        after = now + timedelta(hours=1)
        if now.astimezone(where).utcoffset() != after.astimezone(where).utcoffset():
            found.append(after)
        now = after
    return found


EXPRESSIONS = [
    "*/10 * * * *",
    "* * * * *",
    "5 * * * *",
    "30 2 * * *",
    "0 3 * * *",
    "0,30 1-3 * * *",
    "15 0 * * *",
    "0 9 * * 1-5",
    "59 23 * * *",
    "*/7 2 * * *",
    "30 */2 * * *",
]


@pytest.mark.slow
@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("name", ZONES)
def test_both_nights_of_a_year_are_as_the_model_says(name, expression):
    where = zone(name)
    for change in changes(name, 2011 if name == "Pacific/Apia" else 2026) or [
        datetime(2026, 3, 29, tzinfo=UTC)
    ]:
        begin, end = (change - timedelta(hours=30)).timestamp(), (change + timedelta(hours=30)).timestamp()
        found = fired(expression, begin, end, where)
        assert len(found) == len(set(found)), "nothing fires twice at one moment"
        assert found == sorted(found)
        wanted = model(expression, begin, end, where)
        if cron.is_fixed(expression):
            assert [round(one - begin) for one in found] == [round(one - begin) for one in wanted]
        else:
            # An hour that is skipped has no minutes; one that comes twice has them twice, as elapsed time has.
            assert set(wanted) == set(found)


@pytest.mark.parametrize("name", ZONES)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_moment_has_a_next_one_that_is_later_and_fits(name, data):
    where = zone(name)
    wall = data.draw(st.floats(1_600_000_000, 1_900_000_000))
    expression = data.draw(st.sampled_from(EXPRESSIONS))
    due = cron.next_after(expression, wall, where)
    assert due > wall
    local = datetime.fromtimestamp(due, where)
    before = datetime.fromtimestamp(due - 60, where)
    skipped = before.replace(tzinfo=None) + timedelta(minutes=1) != local.replace(tzinfo=None)
    assert matches(expression, local) or skipped


CLOCK = st.lists(
    st.tuples(
        st.floats(1, 1800), st.one_of(st.just(0.0), st.floats(-7000, 7000), st.floats(-400_000, -20_000))
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(CLOCK, st.sampled_from(EXPRESSIONS))
def test_a_clock_that_jumps_makes_nothing_happen_without_end_nor_stand_still(steps, expression):
    """Looked at after each step of real time; now and then somebody sets the clock."""
    where = ZoneInfo("UTC")
    wall, mono = 1_780_000_000.0, 1000.0
    due = cron.first(expression, wall, mono, where)
    rang = 0
    for elapsed, jump in steps:
        wall, mono = wall + elapsed + jump, mono + elapsed
        due = cron.look(due, wall, mono, where)
        if wall >= due.wall:
            rang += 1
            due = cron.Due(expression, cron.next_after(expression, max(wall, due.wall), where), wall, mono)
        assert due.wall > wall, "after a firing the next one lies ahead"
        # A day and what Debian's cron waits for a clock that was set back a little, and a weekend.
        assert due.wall - wall < 4 * 86_400 + cron.FORGETS_S
    assert rang <= len(steps), "once a look at most, however many were missed"


def test_a_rule_rings_once_when_the_machine_wakes_up(aipass_bench, monkeypatch):
    monkeypatch.setattr(cron, "local_zone", lambda: ZoneInfo("Europe/Berlin"))
    bench = aipass_bench(
        '[agents.w]\ndriver = "command"\ncommand = ["cat"]\n[[on]]\nname = "night"\ncron = "*/10 * * * *"\ndispatch = "w"\ntask = "x"\nper_hour = 100\n'
    )
    bench.clock.advance(3600)
    bench.settle()
    before = len(bench.events("clock.cron"))
    bench.clock.jump(8 * 3600)  # asleep: the monotonic clock stood still
    bench.clock.advance(61)
    bench.settle()
    assert len(bench.events("clock.cron")) == before + 1


@pytest.mark.parametrize(("tz", "offset"), [("Europe/Berlin", 2), (":America/New_York", -4), ("UTC", 0)])
def test_the_zone_is_that_of_tz(monkeypatch, tz, offset):
    zone(tz.lstrip(":"))
    monkeypatch.setenv("TZ", tz)
    assert datetime(2026, 7, 1, tzinfo=cron.local_zone()).utcoffset() == timedelta(hours=offset)


@pytest.mark.parametrize(
    "tz", ["CET-1CEST,M3.5.0,M10.5.0/3", "no such zone", "../../etc/passwd", "/etc/passwd"]
)
def test_a_zone_that_is_none_is_the_offset_of_now(monkeypatch, tz):
    monkeypatch.setenv("TZ", tz)
    assert cron.local_zone().utcoffset(datetime(2026, 7, 1)) is not None
