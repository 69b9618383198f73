"""The contract of a driver as tests: subclass `DriverContract` in a test module and give it your driver.

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
#: Outputs of programs that crashed, are other programs, or are newer than the driver.
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
    """The output and exit status of one run, and the outcome that the driver must return. None: any value is accepted."""

    stdout: bytes
    exit: int | None
    state: str
    answer: str | None = None
    session: str | None = None
    stderr: bytes = b""
    #: Whether the outcome has the reset time of a rate limit.
    resets: bool | None = None
    #: Whether the run continued a conversation.
    resumed: bool = False


class DriverContract:
    """The tests for one driver. A subclass sets the attributes below; pytest runs the inherited tests."""

    driver: Driver
    #: Outputs of real runs, with as many kinds of ends as possible.
    outputs: tuple[Output, ...] = ()
    #: Whether exit status 0 alone means success, as for programs without a result record.
    exit_is_enough = False
    #: Additional keys of `[agents.…]` that the driver needs.
    settings: Mapping[str, Any] = MappingProxyType({})

    @pytest.fixture
    def job(self, tmp_path: Path) -> Job:
        """A job as the engine gives it to the driver."""
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
        """Write the output to the files of the run, and return its end. An `exit` of None becomes signal 9."""
        (job.folder / "stdout.log").write_bytes(output.stdout)
        (job.folder / "stderr.log").write_bytes(output.stderr)
        signal = 9 if output.exit is None else None
        return Exit(output.exit, signal, job.folder / "stdout.log", job.folder / "stderr.log")

    def judged(self, job: Job, output: Output) -> Outcome:
        """Return the driver's outcome for this output. Raises PluginError if the outcome is not valid."""
        if output.resumed:
            job = replace(job, session=output.session or "s-1")
        return check_outcome(self.driver.outcome(job, self.end(job, output)))

    def test_it_is_a_driver(self) -> None:
        """The object has the name, the methods and the arguments of a driver."""
        check_driver(self.driver)

    @pytest.mark.parametrize("contained", [True, False])
    def test_its_command_is_sound_and_always_the_same(self, job: Job, contained: bool) -> None:
        """`command` returns the same valid command for the same job, with the agent's `args` and `model`."""
        # After a crash the engine asks again for the command of the same run: time or randomness would make it another one.
        # `contained`: inside a sandbox a driver may turn off the CLI's own permission prompts; outside it must not.
        job = replace(job, contained=contained)
        command = check_command(self.driver.command(job))
        assert command == self.driver.command(job)
        assert "--one-more" in command.argv, "the agent's `args` are appended"
        if self.driver.name != "command":
            assert any("some-model" in word for word in command.argv), "the agent's `model` is passed on"

    def test_a_prompt_of_any_length_reaches_it(self, job: Job) -> None:
        """No argument of the command contains a long prompt; it comes on stdin or in the file `$AIPASS_PROMPT_FILE`."""
        command = self.driver.command(replace(job, prompt=LONG_PROMPT))
        # Linux limits one argument to 128 KB (MAX_ARG_STRLEN); a longer prompt would fail at the start of the run.
        assert max(map(len, command.argv)) < 100_000

    def test_a_conversation_is_gone_on_with(self, job: Job) -> None:
        """A driver with a method `session` passes the session on to the command; a driver without it does not."""
        command = self.driver.command(replace(job, session="s-1"))
        assert any("s-1" in word for word in command.argv) is hasattr(self.driver, "session")

    @pytest.mark.parametrize("code", [0, 1, 137, None])
    @pytest.mark.parametrize("what", RUBBISH)
    def test_rubbish_is_a_failure_and_never_an_error(self, job: Job, what: str, code: int | None) -> None:
        """For every output the outcome is valid and has a reason; it is a success only if the program reported one."""
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
        """Missing output files give a valid outcome, not an exception: an agent can remove its own output."""
        # A path that does not exist, in place of both files.
        nowhere = job.folder / "nowhere"
        outcome = check_outcome(self.driver.outcome(job, Exit(1, None, nowhere, nowhere)))
        assert outcome.state != "succeeded"

    def test_real_outputs_mean_what_they_meant(self, job: Job) -> None:
        """State, answer, session and reset time of each output in `outputs` are as recorded."""
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
        """A successful output that is cut after any line, or that ends with an error or a signal, is not a success."""
        for output in self.outputs:
            if output.state != "succeeded" or self.exit_is_enough:
                continue
            # A killed CLI may have printed a complete answer already; only its result record proves that it was the last one.
            lines = output.stdout.splitlines(keepends=True)
            last = max(number for number, line in enumerate(lines) if line.strip())
            for number in range(last + 1):
                cut = replace(output, stdout=b"".join(lines[:number]))
                assert self.judged(job, cut).state != "succeeded", f"after {number} lines"
            assert self.judged(job, replace(output, exit=1)).state != "succeeded", "with a bad exit status"
            assert self.judged(job, replace(output, exit=None)).state != "succeeded", "killed"

    def test_fields_that_nobody_knows_change_nothing(self, job: Job) -> None:
        """Unknown records and fields do not change the outcome: newer versions of a program add them."""
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
        """`readable` returns text or None for every line, and some text for a run that succeeded."""
        readable = getattr(self.driver, "readable", None)
        if readable is None:
            return
        for output in self.outputs:
            shown = [readable(line) for line in output.stdout.decode("utf-8", "replace").splitlines()]
            assert all(isinstance(line, str | None) for line in shown)
            assert any(shown) or output.state != "succeeded", "`aipass logs` would show nothing"
