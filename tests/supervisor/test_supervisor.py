"""The supervisor with real processes: trees, signals, leftovers, and what it says of each."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE, until
from supervisor_kit import SupervisorHouse, supervised

from aipass.features.dispatch.supervisors import Supervisors, launch
from aipass.supervisor import process, wire
from aipass.workspace.layout import Layout

pytestmark = pytest.mark.slow


@pytest.fixture
def house(tmp_path):
    with supervised(tmp_path) as made:
        yield made


def test_a_run_gets_its_prompt_and_its_output_goes_to_files(house):
    house.start(1, "sh", "-c", "cat; echo err >&2; exit 3")
    ended = house.wait("ended", 1)
    assert (ended["outcome"], ended["exit"], ended["signal"]) == ("exited", 3, None)
    assert house.output(1) == "the prompt"
    assert (house.layout.run(1) / wire.STDERR).read_text() == "err\n"
    assert wire.read_exit(house.layout.run(1))["exit"] == 3


def test_a_program_that_is_not_there_is_a_failed_start_that_says_so(house):
    house.start(1, "no-such-program")
    ended = house.wait("ended", 1)
    assert ended["outcome"] == "start-failed"
    assert "`no-such-program` was not found" in ended["reason"]


def test_a_program_that_may_not_be_started_says_so(house):
    house.start(1, str(house.layout.root))
    assert "cannot be executed" in house.wait("ended", 1)["reason"]


def test_the_same_run_is_started_once(house):
    for _ in range(3):
        house.start(1, "sh", "-c", "echo x; sleep 0.1")
    house.wait("ended", 1)
    house.start(1, "sh", "-c", "echo x")
    time.sleep(0.1)
    assert house.output(1) == "x\n"


def test_two_runs_of_one_agent_never_live_at_once(house):
    house.start(1, "sleep", "60", agent="same")
    house.wait("started", 1)
    house.start(2, "sleep", "60", agent="same")
    assert "still holds its lock" in house.wait("busy", 2)["reason"]
    house.supervisors.stop_run(1, "cancelled", "enough")
    house.wait("ended", 1)


def test_stop_is_int_then_term_then_kill_for_the_whole_tree(house):
    code = """
import os, signal, subprocess, time
for n in (signal.SIGINT, signal.SIGTERM):
    signal.signal(n, signal.SIG_IGN)
subprocess.Popen(["setsid", "sh", "-c", 'trap "" INT TERM; while :; do sleep 1; done'])
print("ready", flush=True)
time.sleep(600)
"""
    house.python(1, code)
    while "ready" not in (house.output(1) if (house.layout.run(1) / wire.STDOUT).exists() else ""):
        time.sleep(0.01)
    house.supervisors.stop_run(1, "cancelled", "enough")
    ended = house.wait("ended", 1)
    assert (ended["outcome"], ended["reason"], ended["signal"]) == ("cancelled", "enough", signal.SIGKILL)
    assert [step["signal"] for step in ended["steps"]][:3] == ["SIGINT", "SIGTERM", "SIGKILL"]
    assert all(len(step["pids"]) >= 2 for step in ended["steps"][:2])
    assert house.marked(1) == []


@pytest.mark.slow
def test_what_forks_and_ends_at_once_again_and_again_is_ended(house, tmp_path):
    """No look at all processes ever finds the one that lives."""
    beat = tmp_path / "beat"
    code = f"""
import os, signal, time
for n in (signal.SIGINT, signal.SIGTERM):
    signal.signal(n, signal.SIG_IGN)
time.sleep(0.5)
if os.fork() == 0:
    os.setsid()
    until = time.time() + 60
    while time.time() < until:
        open({str(beat)!r}, "w").close()
        time.sleep(0.002)
        if os.fork():
            os._exit(0)
time.sleep(600)
"""
    house.python(1, code)
    until(beat.exists)
    house.supervisors.stop_run(1, "cancelled", "enough")
    assert house.wait("ended", 1)["outcome"] == "cancelled"
    beat.unlink()
    time.sleep(0.3)
    assert not beat.exists(), "it goes on"


def test_an_agent_that_ends_on_int_is_not_killed(house):
    house.python(
        1,
        "import time\nprint('up', flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved')",
    )
    while not (house.layout.run(1) / wire.STDOUT).exists() or "up" not in house.output(1):
        time.sleep(0.01)
    house.supervisors.stop_run(1, "cancelled", "enough")
    ended = house.wait("ended", 1)
    assert [step["signal"] for step in ended["steps"]] == ["SIGINT"]
    assert "saved" in house.output(1)


def test_a_timeout_ends_a_run(house):
    house.start(1, "sleep", "60", timeout_s=0.1)
    assert house.wait("ended", 1)["outcome"] == "timeout"


def test_a_silent_run_is_told_and_goes_on(house):
    house.start(1, "sh", "-c", "echo a; sleep 0.25; echo b; sleep 0.6", stall_s=0.2)
    assert house.wait("stalled", 1)["quiet_s"] >= 0.2
    assert house.wait("ended", 1)["exit"] == 0


def test_what_an_agent_leaves_behind_is_told_and_ended_after_a_grace(house):
    house.start(1, "sh", "-c", "setsid sleep 300 & exit 0")
    lingering = house.wait("lingering", 1)
    assert any("sleep" in line or "sh" in line for line in lingering["processes"])
    ended = house.wait("ended", 1)
    assert (ended["outcome"], ended["exit"]) == ("exited", 0)
    assert ended["steps"]
    assert house.marked(1) == []


def test_linger_lets_it_live_and_the_run_with_it(house):
    house.start(1, "sh", "-c", "setsid sleep 1 & exit 0", linger=True)
    house.wait("lingering", 1)
    ended = house.wait("ended", 1)
    assert ended["steps"] == []


def test_a_process_that_forks_scrubs_its_environment_and_runs_away_is_found(house):
    code = """
import os
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve("/bin/sleep", ["sleep", "301"], {})
        os._exit(0)
"""
    house.python(1, code)
    house.wait("ended", 1)
    assert [pid for pid in process.table() if process.command_line(pid) == "sleep 301"] == []


def test_a_mark_that_is_no_number_confuses_nobody(house):
    code = """
import os
for mark in ("\\u00b2", "9" * 5000, "-1", "x"):
    if os.fork() == 0:
        os.setsid()
        os.execve("/bin/sleep", ["sleep", "304"], {"AIPASS_RUN": mark})
"""
    house.python(1, code)
    assert house.wait("ended", 1)["exit"] == 0
    assert [pid for pid in process.table() if process.command_line(pid) == "sleep 304"] == []


def test_orphans_of_a_living_run_are_not_taken_for_anothers(house):
    house.start(1, "sh", "-c", "(setsid sleep 1.5 &) ; sleep 1.2; echo done")
    time.sleep(0.2)
    house.start(2, "true")
    assert house.wait("ended", 2)["left"] == []
    ended = house.wait("ended", 1)
    assert ended["exit"] == 0
    assert "done" in house.output(1)


def test_a_killed_supervisors_run_is_ended_and_told_as_lost_by_the_next(house):
    house.start(1, "sh", "-c", "setsid sleep 302 & sleep 302")
    house.wait("started", 1)
    time.sleep(0.1)
    old = house.pid()
    os.kill(old, signal.SIGKILL)
    house.supervisors._process.wait()
    while not any(message["tell"] == "gone" for message in house.said):
        time.sleep(0.01)
    assert house.marked(1) != []
    house.supervisors.adopt(1, "a1")
    ended = house.wait("ended", 1)
    assert ended["outcome"] == "lost"
    assert house.marked(1) == []
    assert house.pid() != old
    house.supervisors.adopt(7, "a7")
    assert house.wait("unknown", 7)


def test_an_older_supervisor_keeps_its_runs_and_a_newer_one_leaves_them_alone(house):
    house.start(1, "sleep", "0.8")
    house.wait("started", 1)
    newer = Supervisors(house.layout, "test2")
    said = []
    newer.start(lambda reports: said.extend(report.message for report in reports))
    try:
        newer.adopt(1, "a1")
        until(lambda: any(m["tell"] == "ended" and m["run"] == 1 for m in said))
        assert [m["outcome"] for m in said if m["tell"] == "ended"] == ["exited"]
    finally:
        newer.end()
        newer._process.wait(PATIENCE)
        newer.stop()


@pytest.mark.parametrize("busy", [False, True])
def test_what_is_waited_for_until_its_end_writes_no_more(house, busy):
    if busy:
        house.start(1, "sleep", "60")
        house.wait("started", 1)
    house.supervisors.end()
    assert house.supervisors.wait_ended(30)
    shutil.rmtree(house.layout.state)
    assert not house.layout.state.exists()


def test_a_wait_for_the_end_of_what_goes_on_is_over_in_time(house):
    assert not house.supervisors.wait_ended(0.05)


def test_only_one_supervisor_of_a_version_serves_a_root(house):
    other = launch(house.layout, "test")
    assert other.wait(PATIENCE) == 3


def test_a_path_longer_than_a_sockets_name_may_be(tmp_path):
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    made = SupervisorHouse(deep)
    try:
        made.start(1, "true")
        assert made.wait("ended", 1)["exit"] == 0
    finally:
        made.supervisors.end()
        made.supervisors._process.wait(PATIENCE)
        made.supervisors.stop()


def test_rubbish_on_the_socket_ends_the_connection_and_nothing_else(house):
    from aipass.features.dispatch.supervisors import connect

    with connect(house.layout.state, "test") as link:
        link.sendall(b"not json\n")
        link.settimeout(5)
        while link.recv(65536):
            pass
    with connect(house.layout.state, "test") as link:
        link.sendall(wire.pack({"do": "dance"}) + wire.pack({"do": "start"}) + wire.pack({"no": 1}))
    house.start(1, "true")
    assert house.wait("ended", 1)["exit"] == 0


def test_a_signal_never_hits_a_process_that_got_the_id_since():
    child = subprocess.Popen(["sleep", "60"])
    try:
        found = process.look(child.pid)
        stranger = found._replace(start=found.start - 1)
        assert not process.send(stranger, signal.SIGKILL)
        assert child.poll() is None
        assert process.send(found, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), max_size=40),
    st.sets(st.integers(1, 30), max_size=5),
)
def test_a_tree_is_its_roots_and_all_that_descends_from_them(pairs, roots):
    table = {pid: process.Process(pid, ppid, 0, 0, "S") for pid, ppid in pairs}
    found = process.tree(table, roots)
    assert found <= set(table)
    assert roots & set(table) <= found
    assert all(pid in found for pid, row in table.items() if row.ppid in found)
    assert all(pid in roots or table[pid].ppid in found for pid in found)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=6),
    st.integers(1, 7),
)
def test_messages_arrive_whole_however_the_bytes_are_cut(messages, size):
    data = b"".join(map(wire.pack, messages))
    lines, got = wire.MessageReader(), []
    for start in range(0, len(data), size):
        got += lines.feed(data[start : start + size])
    assert got == messages


def test_nothing_begins_before_an_older_supervisor_has_taken_away_what_its_runs_lost(tmp_path):
    supervisors = Supervisors(Layout(tmp_path), "newer")
    supervisors._tell = lambda reports: None
    ends = {}
    for version in ("older", "newer"):
        supervisors._links[version], ends[version] = socket.socketpair()
        ends[version].settimeout(0.2)
    link = supervisors._links["older"]
    listener = threading.Thread(target=supervisors._listen, args=("older", link))
    listener.start()
    try:
        supervisors.set_territory({"serial": 3, "table": {}, "handed": []})
        supervisors.start_run({"run": 1})
        assert b'"territory"' in ends["newer"].recv(1000)
        with pytest.raises(TimeoutError):
            ends["newer"].recv(1000)
        ends["older"].sendall(wire.pack({"tell": "territory", "serial": 2}))
        with pytest.raises(TimeoutError):
            ends["newer"].recv(1000)
        ends["older"].sendall(wire.pack({"tell": "territory", "serial": 3}))
        ends["newer"].settimeout(10)
        assert b'"start"' in ends["newer"].recv(1000)
        # One that goes away answers nothing any more.
        supervisors.set_territory({"serial": 4, "table": {}, "handed": []})
        supervisors.start_run({"run": 2})
        ends["older"].close()
        received = b""
        while b'"start"' not in received:
            received += ends["newer"].recv(1000)
    finally:
        supervisors.stop()
        listener.join()
        for end in ends.values():
            end.close()
