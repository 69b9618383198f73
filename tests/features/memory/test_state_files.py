"""The shelf: what agents save is told, what cannot be used is set aside, and the last good state is put back."""

from __future__ import annotations

import json
import os
import random
import time

import pytest
from patience import PATIENCE, until

from aipass.config.model import State
from aipass.features.memory import safe_files as place
from aipass.features.memory import state_files as shelf
from aipass.features.memory.document import render
from aipass.features.memory.model import FILES, LOCAL, OBSERVATIONS, PASSPORT
from aipass.features.memory.state_files import StateFiles, StateRejected, StateSaved
from aipass.sources.worker import Worker
from aipass.workspace.layout import Layout

ENTRY = {"id": 1, "text": "mend it", "added": "2026-01-01T00:00:00.000Z", "tags": ["a"]}
GOOD = {
    PASSPORT: render({"schema": 1, "agent": "api", "role": None}),
    LOCAL: render(
        {
            "schema": 1,
            "agent": "api",
            "updated": "2026-01-01T00:00:00.000Z",
            "now": {"dispatch": 3, "plan": None, "phase": None, "task": "t", "since": None, "doing": "x"},
            "todos": [ENTRY],
            "learnings": [],
            "sessions": [],
        }
    ),
    OBSERVATIONS: render({"schema": 1, "agent": "api", "updated": None, "observations": [ENTRY]}),
}


class Stand:
    """A shelf over one agent's files, and what it told."""

    def __init__(self, root, home="services/api"):
        self.layout, self.told = Layout(root), []
        (root / ".aipass/quarantine").mkdir(parents=True, exist_ok=True)
        self.folder = root / home / ".trinity"
        self.shelf = StateFiles(
            self.layout,
            lambda text: (text.replace("SECRET", "[masked]"), ["key"] if "SECRET" in text else []),
        )
        self.shelf.start(self.told.extend)
        self.shelf.serve({"api": home}, State(), {("api", name): body for name, body in GOOD.items()})
        self.wait(self.is_good)

    def is_good(self):
        return all(self.holds(name, body) for name, body in GOOD.items())

    def holds(self, name, body):
        path = self.folder / name
        try:
            return not path.is_symlink() and path.is_file() and path.read_bytes() == body
        except OSError:
            return False

    def wait(self, condition, what="it"):
        until(condition, lambda: (what, self.told, sorted(self.folder.iterdir())))

    def rejected(self):
        return [one for one in self.told if isinstance(one, StateRejected)]

    def saved(self):
        return [one for one in self.told if isinstance(one, StateSaved)]

    def kept(self):
        folder = self.layout.root / ".aipass/quarantine/trinity/api"
        return sorted(folder.iterdir()) if folder.exists() else []


@pytest.fixture
def stand(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shelf, "LOOK_EVERY_S", 1e-4
    )  # how slow it is with whom saves without end is tried by itself
    made = Stand(tmp_path)
    yield made
    made.shelf.stop()


def by_rename(path, data):
    half = path.with_name(".half")
    half.write_bytes(data)
    half.rename(path)


def broken():
    """Contents that are no state, each as bytes."""
    sample = render(
        json.loads(GOOD[LOCAL]) | {"learnings": [ENTRY | {"id": 2}, ENTRY | {"id": 3, "text": "é" * 20}]}
    )
    found = [sample[:end] for end in range(len(sample) - 2)]
    found += [
        b"[]", b"null", b"3", b'"x"', b"\xef\xbb\xbf" + GOOD[LOCAL], GOOD[LOCAL].decode().encode("utf-16"),
        GOOD[LOCAL].replace(b"mend", b"\xff\xfe"), b"{" + b'"a":{' * 50_000, b"[" * 100_000,
        GOOD[LOCAL].replace(b'"todos"', b'"todos": [], "todos"'), GOOD[LOCAL].replace(b'"dispatch": 3', b'"dispatch": NaN'),
        GOOD[LOCAL].replace(b'"dispatch": 3', b'"dispatch": 1e400'), GOOD[LOCAL].replace(b'"id": 1', b'"id": "1"'),
        GOOD[LOCAL].replace(b'"mend it"', b"5"), GOOD[LOCAL].replace(b'"mend it"', b'"' + b"x" * 601 + b'"'),
        GOOD[LOCAL].replace(b'"mend it"', b'"\\ud800"'), GOOD[LOCAL].replace(b'"todos"', b'"tasks"'),
        GOOD[LOCAL].replace(b'"learnings": []', b'"learnings": {}'), b"\0" * 4096, random.Random(4).randbytes(4096),
        b" " * 50_000_000, GOOD[LOCAL] + b"x", GOOD[LOCAL] * 2,
    ]  # fmt: skip
    return found


@pytest.mark.slow
def test_hundreds_of_broken_writes_are_each_answered_by_the_last_good_state(stand, monkeypatch):
    monkeypatch.setattr(place, "MOST_ASIDE", 10_000)
    cases = broken()
    assert len(cases) >= 500
    for number, data in enumerate(cases, 1):
        path = stand.folder / LOCAL
        if number % 2:
            by_rename(path, data)
        else:
            path.write_bytes(data)
        stand.wait(lambda number=number: len(stand.rejected()) == number, data[:100])
        stand.wait(stand.is_good)
    assert not stand.saved()
    assert [path.read_bytes() for path in stand.kept()] == cases
    assert [one.kept for one in stand.rejected()] == [
        str(path.relative_to(stand.layout.root)) for path in stand.kept()
    ]


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_set_aside_whatever_it_is(stand, name, tmp_path):
    path = stand.folder / name
    (tmp_path / "elsewhere").write_text("mine")

    def link():
        path.symlink_to(tmp_path / "elsewhere")

    def folder():
        (stand.folder / "made").mkdir(exist_ok=True)
        (stand.folder / "made/inside").write_text("kept")
        os.rename(stand.folder / "made", path)

    for number, make in enumerate((link, lambda: os.mkfifo(path), folder), 1):
        while True:
            path.unlink()
            try:
                make()
            except (FileExistsError, NotADirectoryError):  # it was put back meanwhile
                continue
            break
        stand.wait(lambda number=number: len(stand.rejected()) == number)
        stand.wait(stand.is_good)
    assert "symbolic link" in stand.rejected()[0].reason
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert (stand.kept()[2] / "inside").read_text() == "kept"


def test_a_folder_in_the_place_of_the_state_files_or_a_link_leads_nowhere(stand, tmp_path):
    (tmp_path / "other").mkdir()
    os.rename(stand.folder, stand.folder.with_name("gone"))
    stand.wait(stand.is_good)
    os.rename(stand.folder, stand.folder.with_name("gone2"))
    try:
        stand.folder.symlink_to(tmp_path / "other")
    except FileExistsError:
        pass
    stand.wait(stand.is_good)
    assert not list((tmp_path / "other").iterdir())


def test_a_home_that_became_a_link_is_told_and_nothing_is_written_through_it(tmp_path):
    stand = Stand(tmp_path)
    try:
        os.rename(tmp_path / "services", tmp_path / "moved")
        (tmp_path / "other").mkdir()
        (tmp_path / "services").symlink_to(tmp_path / "other")
        stand.shelf.publish("api", LOCAL, GOOD[LOCAL].replace(b"mend", b"MEND"))
        stand.wait(stand.rejected)
        assert "symbolic link" in stand.rejected()[0].reason
        assert not list((tmp_path / "other").iterdir())
    finally:
        stand.shelf.stop()


def test_what_can_be_used_is_told_once_with_its_secrets_taken_out_and_stays_until_the_engine_says(stand):
    mine = GOOD[LOCAL].replace(b"mend it", b"the SECRET")
    by_rename(stand.folder / LOCAL, mine)
    stand.wait(stand.saved)
    (told,) = stand.saved()
    assert told.saved.lists["todo"][0].text == "the [masked]"
    assert told.masked == ("key",)
    assert stand.holds(LOCAL, mine)
    new = GOOD[LOCAL].replace(b"mend it", b"the [masked]")
    stand.shelf.publish("api", LOCAL, new)
    stand.wait(lambda: stand.holds(LOCAL, new))
    time.sleep(0.05)
    assert len(stand.told) == 1


def test_a_passport_that_was_changed_is_put_back_and_named(stand):
    by_rename(stand.folder / PASSPORT, GOOD[PASSPORT].replace(b"null", b'"boss"'))
    stand.wait(stand.rejected)
    assert stand.rejected()[0].field == "role"
    assert stand.rejected()[0].line == 4
    stand.wait(stand.is_good)


def test_a_save_that_the_engine_replaced_before_it_was_read_is_told_all_the_same(stand):
    """An agent writes in place, slowly; the engine publishes in between: the agent's descriptor has no name any more."""
    mine = GOOD[LOCAL].replace(b"mend it", b"in place")
    with (stand.folder / LOCAL).open("r+b") as file:
        file.truncate()
        file.write(mine[:50])
        file.flush()
        new = GOOD[LOCAL].replace(b'"x"', b'"y"')
        stand.shelf.publish("api", LOCAL, new)
        stand.wait(lambda: stand.holds(LOCAL, new))
        file.write(mine[50:])
    stand.wait(stand.saved)
    assert stand.saved()[0].saved.lists["todo"][0].text == "in place"
    assert stand.holds(LOCAL, new)


def test_what_is_still_being_written_is_judged_when_it_is_closed(stand, monkeypatch):
    """A look may come at any moment: for another change, a start, or one that was put off."""
    monkeypatch.setattr(shelf, "OPEN_WAIT_S", PATIENCE)
    mine = GOOD[LOCAL].replace(b"mend it", b"in place")
    with (stand.folder / LOCAL).open("r+b") as file:
        file.truncate()
        file.write(mine[:50])
        file.flush()
        stand.shelf.serve({"api": "services/api"}, State(), {})
        (stand.folder / OBSERVATIONS).unlink()
        stand.wait(lambda: stand.holds(OBSERVATIONS, GOOD[OBSERVATIONS]))
        file.write(mine[50:])
    stand.wait(stand.saved)
    assert stand.saved()[0].saved.lists["todo"][0].text == "in place"
    assert not stand.rejected()
    assert stand.holds(LOCAL, mine)


def test_what_is_kept_open_is_judged_all_the_same_after_a_while(stand, monkeypatch):
    monkeypatch.setattr(shelf, "OPEN_WAIT_S", 0.2)
    with (stand.folder / LOCAL).open("r+b") as file:
        file.truncate()
        file.write(b"{ broken")
        file.flush()
        stand.shelf.serve({"api": "services/api"}, State(), {})
        stand.wait(stand.rejected)
        stand.wait(stand.is_good)
    assert stand.kept()[0].read_bytes() == b"{ broken"
    stand.wait(stand.shelf.is_settled)


def test_a_broken_save_that_was_replaced_is_kept(stand):
    with (stand.folder / LOCAL).open("r+b") as file:
        file.truncate()
        file.flush()
        stand.shelf.publish("api", LOCAL, GOOD[LOCAL].replace(b'"x"', b'"y"'))
        stand.wait(lambda: b'"y"' in (stand.folder / LOCAL).read_bytes())
        file.write(b"{ broken")
    stand.wait(stand.rejected)
    assert stand.kept()[0].read_bytes() == b"{ broken"


def test_the_beginning_of_a_good_file_is_a_broken_save_as_well(stand):
    """Such a content is what a write of ours leaves that was killed, but not in the place of the file: there ours are whole."""
    new = GOOD[LOCAL].replace(b'"x"', b'"y"')

    def between():
        by_rename(stand.folder / LOCAL, b"{")
        stand.shelf._publish(("api", LOCAL), new)  # before the thread can look

    stand.shelf._worker.ask(between)
    stand.wait(stand.rejected)
    assert stand.kept()[0].read_bytes() == b"{"
    assert stand.holds(LOCAL, new)


def test_every_save_of_an_agent_that_never_stops_saving_is_told_or_was_replaced_by_it(stand):
    """Saves race with what the engine publishes: none that stood there last is lost."""
    for number in range(200):
        by_rename(stand.folder / LOCAL, GOOD[LOCAL].replace(b"mend it", b"save %d" % number))
        stand.shelf.publish("api", LOCAL, GOOD[LOCAL].replace(b'"x"', b'"p%d"' % number))
    stand.wait(stand.shelf.is_settled)
    stand.wait(lambda: any(one.saved.lists["todo"][0].text == "save 199" for one in stand.saved()))
    texts = [one.saved.lists["todo"][0].text for one in stand.saved()]
    assert texts == sorted(texts, key=lambda text: int(text.split()[1]))


def test_what_stands_there_at_the_start_is_looked_at(tmp_path):
    folder = tmp_path / "services/api/.trinity"
    folder.mkdir(parents=True)
    (folder / LOCAL).write_bytes(GOOD[LOCAL].replace(b"mend it", b"while it was away"))
    (folder / OBSERVATIONS).write_bytes(b"{")
    stand = Stand.__new__(Stand)
    stand.wait = lambda *_: None
    Stand.__init__(stand, tmp_path)
    del stand.wait
    try:
        stand.wait(lambda: stand.saved() and stand.rejected())
        assert stand.saved()[0].saved.lists["todo"][0].text == "while it was away"
        assert stand.holds(OBSERVATIONS, GOOD[OBSERVATIONS])
    finally:
        stand.shelf.stop()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_was_made_read_only_is_written_all_the_same(stand):
    (stand.folder / LOCAL).write_bytes(b"{")
    stand.folder.chmod(0o500)
    stand.wait(stand.is_good)


def test_a_file_that_was_made_read_only_is_replaced_all_the_same(stand):
    by_rename(stand.folder / LOCAL, b"{")
    stand.wait(stand.is_good)
    (stand.folder / LOCAL).chmod(0o444)
    new = GOOD[LOCAL].replace(b'"x"', b'"y"')
    stand.shelf.publish("api", LOCAL, new)
    stand.wait(lambda: stand.holds(LOCAL, new))


def test_where_the_kernel_tells_nothing_the_files_are_polled(tmp_path, monkeypatch):
    from aipass.features.memory import state_files as shelf
    from aipass.sources import inotify

    def none():
        raise OSError("no inotify here")

    monkeypatch.setattr(inotify, "Inotify", none)
    monkeypatch.setattr(shelf, "POLL_S", 0.02)
    stand = Stand(tmp_path)
    try:
        by_rename(stand.folder / LOCAL, GOOD[LOCAL].replace(b"mend it", b"polled"))
        stand.wait(stand.saved)
        (stand.folder / PASSPORT).unlink()
        stand.wait(lambda: stand.holds(PASSPORT, GOOD[PASSPORT]))
    finally:
        stand.shelf.stop()


def test_a_publication_that_the_disk_refused_is_made_later(stand, monkeypatch):
    from aipass.features.memory import state_files as shelf

    real, refusals = shelf.write_half, [OSError(28, "full")] * 3
    monkeypatch.setattr(shelf, "POLL_S", 0.01)

    def write(*given):
        if refusals:
            raise refusals.pop()
        return real(*given)

    monkeypatch.setattr(shelf, "write_half", write)
    new = GOOD[LOCAL].replace(b'"x"', b'"y"')
    stand.shelf.publish("api", LOCAL, new)
    stand.wait(lambda: stand.holds(LOCAL, new))
    assert not refusals


def test_json_that_a_test_writes_is_the_shape_that_is_checked():
    assert json.loads(GOOD[LOCAL])["todos"] == [ENTRY]


def test_what_a_killed_engine_had_taken_away_and_not_read_is_read_by_the_next(tmp_path):
    folder = tmp_path / "services/api/.trinity"
    folder.mkdir(parents=True)
    (folder / f".{LOCAL}.0123abcd").write_bytes(GOOD[LOCAL].replace(b"mend it", b"taken away"))
    (folder / f".{LOCAL}.0123abce").write_bytes(GOOD[LOCAL][:50])
    stand = Stand(tmp_path)
    try:
        stand.wait(stand.saved)
        assert stand.saved()[0].saved.lists["todo"][0].text == "taken away"
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
        assert not stand.rejected()
    finally:
        stand.shelf.stop()


def test_a_program_that_keeps_its_files_open_uses_up_no_descriptors(stand, monkeypatch):
    from aipass.features.memory import state_files as shelf

    monkeypatch.setattr(shelf, "MOST_REPLACED", 5)
    before, held = len(os.listdir("/proc/self/fd")), []
    for number in range(40):
        held.append((stand.folder / LOCAL).open("r+b"))
        new = GOOD[LOCAL].replace(b'"x"', b'"p%d"' % number)
        stand.shelf.publish("api", LOCAL, new)
        stand.wait(lambda new=new: stand.holds(LOCAL, new))
    stand.wait(lambda: len(os.listdir("/proc/self/fd")) <= before + 40 + 12)
    for one in held:
        one.close()


def test_a_folder_that_takes_the_place_of_the_watched_one_is_watched(stand, tmp_path):
    os.rename(tmp_path / "services", tmp_path / "old")
    stand.shelf.publish("api", LOCAL, GOOD[LOCAL].replace(b'"x"', b'"y"'))
    stand.wait(lambda: (stand.folder / PASSPORT).exists())
    by_rename(stand.folder / LOCAL, GOOD[LOCAL].replace(b"mend it", b"in the new one"))
    stand.wait(stand.saved)


def test_what_is_written_into_a_replaced_file_after_the_engine_has_ended_is_read_by_the_next(tmp_path):
    first = Stand(tmp_path)
    with (first.folder / LOCAL).open("r+b") as file:
        new = GOOD[LOCAL].replace(b'"x"', b'"y"')
        first.shelf.publish("api", LOCAL, new)
        first.wait(lambda: first.holds(LOCAL, new))
        first.shelf.publish("api", LOCAL, GOOD[LOCAL])
        first.wait(first.is_good)
        first.shelf.stop()
        second = Stand(tmp_path)
        try:
            file.write(GOOD[LOCAL].replace(b"mend it", b"late one"))
            file.truncate()
            file.close()
            second.wait(second.saved)
            assert second.saved()[0].saved.lists["todo"][0].text == "late one"
            second.wait(lambda: sorted(path.name for path in second.folder.iterdir()) == sorted(FILES))
        finally:
            second.shelf.stop()


def test_the_same_rubbish_is_kept_once(stand):
    for number in range(30):
        by_rename(stand.folder / LOCAL, b"{ rubbish")
        stand.wait(lambda number=number: len(stand.rejected()) > number and stand.is_good())
    assert [path.read_bytes() for path in stand.kept()] == [b"{ rubbish"]
    assert len({one.kept for one in stand.rejected()}) == 1
    by_rename(stand.folder / LOCAL, b"{ other rubbish")
    stand.wait(lambda: len(stand.kept()) == 2)


def test_a_formatter_may_have_its_way_and_is_not_answered(stand):
    formatted = json.dumps(json.loads(GOOD[LOCAL]), indent=8).encode()
    by_rename(stand.folder / LOCAL, formatted)
    by_rename(stand.folder / OBSERVATIONS, b"{")
    stand.wait(stand.rejected)
    assert stand.holds(LOCAL, formatted)
    assert not stand.saved()


def test_a_program_that_answers_each_of_our_writes_is_not_answered_at_full_rate(stand, monkeypatch):
    from aipass.features.memory import state_files as shelf

    made, real = [], shelf.exchange.exchange
    monkeypatch.setattr(shelf, "POLL_S", 3600.0)
    monkeypatch.setattr(shelf.exchange, "exchange", lambda *given: made.append(1) or real(*given))
    for _ in range(200):
        stand.shelf.publish("api", LOCAL, GOOD[LOCAL])
    stand.wait(stand.shelf.is_settled)
    assert shelf.MOST_AT_ONCE <= len(made) <= shelf.MOST_AT_ONCE + 2
    by_rename(stand.folder / LOCAL, GOOD[LOCAL].replace(b"mend it", b"still here"))
    stand.wait(stand.saved)
    new = GOOD[LOCAL].replace(b'"x"', b'"y"')
    stand.shelf.publish("api", LOCAL, new)
    stand.wait(lambda: stand.holds(LOCAL, new), "what is new comes at once")


def test_a_link_that_takes_the_place_of_a_broken_file_is_told_as_well(stand, monkeypatch):
    places, real = stand.shelf._places, stand.shelf._places.set_aside

    def swapped(agent, name, folder, standing=None):
        (stand.folder / LOCAL).unlink()
        (stand.folder / LOCAL).symlink_to("/etc/passwd")
        return real(agent, name, folder, standing)

    monkeypatch.setattr(places, "set_aside", swapped)
    by_rename(stand.folder / LOCAL, b"{")
    stand.wait(stand.rejected)
    assert "symbolic link" in stand.rejected()[0].reason
    assert not stand.layout.crashes.exists()


def test_what_was_set_aside_is_told_also_where_the_disk_refuses_to_put_the_last_state_back(
    stand, monkeypatch
):
    from aipass.features.memory import state_files as shelf

    real, refusals = shelf.write_half, [OSError(28, "full")]
    monkeypatch.setattr(shelf, "POLL_S", 0.02)
    monkeypatch.setattr(
        shelf,
        "write_half",
        lambda *given: (_ for _ in ()).throw(refusals.pop()) if refusals else real(*given),
    )
    by_rename(stand.folder / LOCAL, b"{")
    stand.wait(stand.rejected)
    stand.wait(stand.is_good)


def test_halves_of_ours_are_no_saves_and_a_save_on_its_way_is_one(tmp_path):
    folder = tmp_path / "services/api/.trinity"
    folder.mkdir(parents=True)
    (folder / f".{PASSPORT}.0123abcd").write_bytes(GOOD[PASSPORT].replace(b"null", b'"old role"'))
    (folder / f".{LOCAL}.0123abcd").write_bytes(GOOD[LOCAL])
    (folder / f".{LOCAL}.0123abcf.aside").write_bytes(GOOD[LOCAL].replace(b"mend it", b"on its way"))
    stand = Stand(tmp_path)
    try:
        stand.wait(stand.saved)
        assert [one.saved.lists["todo"][0].text for one in stand.saved()] == ["on its way"]
        assert stand.rejected() == []
        stand.wait(lambda: sorted(path.name for path in folder.iterdir()) == sorted(FILES))
    finally:
        stand.shelf.stop()


def test_who_asks_a_thread_that_has_ended_writes_to_nobodys_file(tmp_path):
    worker = Worker("x", tmp_path, lambda _: None)
    worker.start()
    worker.stop()
    files = [(tmp_path / f"f{number}").open("wb", buffering=0) for number in range(4)]
    worker.ask(lambda: None)
    for file in files:
        file.close()
    assert {path.read_bytes() for path in tmp_path.glob("f*")} == {b""}
    assert worker.is_settled()
