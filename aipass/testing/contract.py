"""What every driver must keep to, as tests: subclass `DriverContract` in a test module and give it your driver.

```python
class TestMine(DriverContract):
    driver = MyDriver()
    outputs = (Output(Path("a real run's output.jsonl").read_bytes(), 0, "succeeded", answer="done", session="s-1"),)
```
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from aipass.config.model import Agent
from aipass.features.dispatch.driver import (
    Driver,
    Exit,
    Job,
    Outcome,
    check_command,
    check_driver,
    check_outcome,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Longer than any kernel takes as one argument of a program (128 KB on Linux).
LONG_PROMPT = "x" * 200_000
#: What comes out of broken, foreign and newer programs.
RUBBISH: dict[str, bytes] = {
    "nothing": b"",
    "words": b"Segmentation fault\n",
    "bytes that are no UTF-8": b"\xff\xfe\x00\n\xed\xa0\x80\n",
    "half a record": b'{"type": "result", "is_err',
    "records of other shapes": b'7\n[]\n"x"\nnull\n{}\n{"type": 7}\n{"type": "result"}\n{"type": "item.completed", "item": null}\n',
    "lists for objects": b'{"type": "result", "usage": [], "stats": [1], "error": "x", "permission_denials": {"a": 1}}\n',
    "numbers for text": b'{"type": "message", "role": "assistant", "content": 7, "session_id": 7, "sessionID": [], "thread_id": {}}\n',
    "a nested abyss": b"[" * 100_000 + b"\n",
    "a long line": b"{" + b"x" * 2_000_000 + b"\n",
    "moments and amounts beyond all": b'{"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": 1e400}}\n'
    b'{"type": "result", "is_error": true, "result": "usage limit reached, try again in 99999999999999 days", "usage": {"input_tokens": -5, "output_tokens": 1e300}}\n'
    b'{"type": "error", "error": {"data": {"message": "x", "wait_s": NaN}}}\n{"type": "turn.failed", "error": {"message": "usage limit|1999999999999"}}\n',
    "a session that is an option": b'{"type": "init", "session_id": "--yes", "sessionID": "--yes", "thread_id": "-rf /"}\n',
}


@dataclass(frozen=True, slots=True)
class Output:
    """What a run has written to stdout, how it ended, and what that means. None: whatever the driver says."""

    stdout: bytes
    exit: int | None
    state: str
    answer: str | None = None
    session: str | None = None
    stderr: bytes = b""
    #: Whether the reset time of a limit is known.
    resets: bool | None = None
    #: Whether the run went on with a conversation.
    resumed: bool = False


class DriverContract:
    """Subclass it; pytest runs what it inherits."""

    driver: Driver
    #: Outputs of real runs: the more kinds of end, the better.
    outputs: tuple[Output, ...] = ()
    #: Whether an exit status of 0 alone is success, as for programs that do not say more.
    exit_is_enough = False
    #: Keys of `[agents.…]` that the driver needs besides.
    settings: Mapping[str, Any] = MappingProxyType({})

    @pytest.fixture
    def job(self, tmp_path: Path) -> Job:
        """A run as the engine describes it."""
        folder, state = tmp_path / "run", tmp_path / "state"
        folder.mkdir()
        state.mkdir()
        settings = {
            "driver": self.driver.name,
            "model": "some-model",
            "args": ("--one-more",),
            **self.settings,
        }
        agent = Agent.model_validate(settings)
        return Job(
            1, 1, "it", agent, tmp_path, folder, "Do it", 1, state, contained=True, tmp=tmp_path / "tmp"
        )

    @staticmethod
    def end(job: Job, output: Output) -> Exit:
        """The output, put where a run leaves it."""
        (job.folder / "stdout.log").write_bytes(output.stdout)
        (job.folder / "stderr.log").write_bytes(output.stderr)
        signal = 9 if output.exit is None else None
        return Exit(output.exit, signal, job.folder / "stdout.log", job.folder / "stderr.log")

    def judged(self, job: Job, output: Output) -> Outcome:
        """The driver's verdict, which must be a sound one."""
        if output.resumed:
            job = replace(job, session=output.session or "s-1")
        return check_outcome(self.driver.outcome(job, self.end(job, output)))

    def test_it_is_a_driver(self) -> None:
        """Names, methods and their arguments."""
        check_driver(self.driver)

    @pytest.mark.parametrize("contained", [True, False])
    def test_its_command_is_sound_and_always_the_same(self, job: Job, contained: bool) -> None:
        """No clock, no chance: a run that is begun a second time after a crash is the same run."""
        job = replace(job, contained=contained)
        command = check_command(self.driver.command(job))
        assert command == self.driver.command(job)
        assert "--one-more" in command.argv, "the agent's `args` are appended"
        if self.driver.name != "command":
            assert any("some-model" in word for word in command.argv), "the agent's `model` is passed on"

    def test_a_prompt_of_any_length_reaches_it(self, job: Job) -> None:
        """On stdin, or by the file that `$AIPASS_PROMPT_FILE` names: an argument is limited."""
        command = self.driver.command(replace(job, prompt=LONG_PROMPT))
        assert max(map(len, command.argv)) < 100_000

    def test_a_conversation_is_gone_on_with(self, job: Job) -> None:
        """Whoever can tell a conversation's name can go on with it."""
        command = self.driver.command(replace(job, session="s-1"))
        assert any("s-1" in word for word in command.argv) is hasattr(self.driver, "session")

    @pytest.mark.parametrize("code", [0, 1, 137, None])
    @pytest.mark.parametrize("what", RUBBISH)
    def test_rubbish_is_a_failure_and_never_an_error(self, job: Job, what: str, code: int | None) -> None:
        """Whatever a program writes, the verdict is sound, and success only where it was said."""
        output = Output(RUBBISH[what], code, "failed", stderr=RUBBISH[what])
        outcome = self.judged(job, output)
        if code != 0 or not self.exit_is_enough:
            assert outcome.state != "succeeded"
            assert outcome.reason, "why not, in words"
        if hasattr(self.driver, "session"):
            check_outcome(Outcome("failed", session=self.driver.session(job.folder / "stdout.log")))
        if hasattr(self.driver, "readable"):
            for line in RUBBISH[what].decode("utf-8", "replace").splitlines():
                assert isinstance(self.driver.readable(line), str | None)

    def test_output_that_is_gone_is_no_error(self, job: Job) -> None:
        """An agent may remove its own output."""
        nowhere = job.folder / "nowhere"
        outcome = check_outcome(self.driver.outcome(job, Exit(1, None, nowhere, nowhere)))
        assert outcome.state != "succeeded"

    def test_real_outputs_mean_what_they_meant(self, job: Job) -> None:
        """State, answer, conversation and the end of a limit."""
        for output in self.outputs:
            outcome = self.judged(job, output)
            assert outcome.state == output.state, outcome
            if output.answer is not None:
                answer = outcome.answer
                assert (answer.read_text() if isinstance(answer, Path) else answer) == output.answer
            if output.session is not None and not output.resumed:
                assert outcome.session == output.session
                assert self.driver.session(job.folder / "stdout.log") == output.session  # type: ignore[attr-defined]
            if output.resets is not None:
                assert (outcome.resets is not None) is output.resets

    def test_a_run_that_broke_off_has_not_succeeded(self, job: Job) -> None:
        """However much of a good run's output is there: without its last word it is none."""
        for output in self.outputs:
            if output.state != "succeeded" or self.exit_is_enough:
                continue
            lines = output.stdout.splitlines(keepends=True)
            last = max(number for number, line in enumerate(lines) if line.strip())
            for number in range(last + 1):
                cut = replace(output, stdout=b"".join(lines[:number]))
                assert self.judged(job, cut).state != "succeeded", f"after {number} lines"
            assert self.judged(job, replace(output, exit=1)).state != "succeeded", "with a bad exit status"
            assert self.judged(job, replace(output, exit=None)).state != "succeeded", "killed"

    def test_fields_that_nobody_knows_change_nothing(self, job: Job) -> None:
        """Programs are updated: new records and fields come."""
        for output in self.outputs:
            lines = []
            for line in output.stdout.splitlines():
                try:
                    lines.append(json.dumps({"of the future": {"deep": [None]}, **json.loads(line)}).encode())
                except (ValueError, TypeError):
                    lines.append(line)
            newer = b'{"type": "of.the.future", "item": null}\n' + b"\n".join(lines) + b"\n"
            if lines and lines[0].startswith(b"{"):
                assert self.judged(job, replace(output, stdout=newer)).state == output.state

    def test_its_lines_are_readable(self) -> None:
        """What `aipass logs` shows of a run that succeeded is something."""
        readable = getattr(self.driver, "readable", None)
        if readable is None:
            return
        for output in self.outputs:
            shown = [readable(line) for line in output.stdout.decode("utf-8", "replace").splitlines()]
            assert all(isinstance(line, str | None) for line in shown)
            assert any(shown) or output.state != "succeeded", "nothing of it is for eyes"
