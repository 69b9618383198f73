"""A scripted model: speaks Anthropic Messages, OpenAI Responses and chat completions, and Gemini, and does what the prompt says.

Each line of the newest prompt is a step. `SAY words`; `READ path`, `WRITE path text`, `EDIT path old new`, `SHELL command`, `ASK question` use a
tool: that is one turn, and the model is asked again with the tool's result. `STATUS 500 [times]` fails; `LIMIT seconds [times]` says
that a limit is reached and when it ends; `SLEEP seconds` waits, `HANG` says nothing for ever, `STALL` begins to answer and stops;
`BIG bytes` says so much.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_NUMBERS = itertools.count(1)
STEP = re.compile(
    r"^(SAY|READ|WRITE|EDIT|SHELL|ASK|STATUS|LIMIT|SLEEP|HANG|STALL|BIG)(?: (.+))?$", re.MULTILINE
)
TOOLS = frozenset(("READ", "WRITE", "EDIT", "SHELL", "ASK"))


class ModelServer:
    """Listens on loopback. `requests`: what was asked, oldest first, as (path, body)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        #: When each came, on the monotonic clock.
        self.moments: list[float] = []
        self.failures: dict[str, int] = {}
        self.closing = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._send(200, b"", "text/plain")

            def do_GET(self) -> None:
                self._send(200, b"{}", "application/json")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                owner.moments.append(time.monotonic())
                owner.requests.append((self.path, body))
                try:
                    owner._answer(self, body)
                except (BrokenPipeError, ConnectionResetError):
                    pass

            def _begin(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                self.wfile.write(b": it begins\n\n")
                self.wfile.flush()

            def _send(self, status: int, data: bytes, kind: str, **headers: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # -- what to do ------------------------------------------------------------------------------------------------

    def _answer(self, handler: Any, body: dict[str, Any]) -> None:
        family = _family(handler.path)
        prompt, done = FAMILIES[family].read(body)
        steps = STEP.findall(prompt)
        used = 0
        for number, (verb, words) in enumerate(steps):
            if verb in {"STATUS", "LIMIT"}:
                value, _, times = words.partition(" ")
                key = f"{prompt}#{number}"
                self.failures[key] = self.failures.get(key, 0) + 1
                if self.failures[key] <= int(times or 1_000_000):
                    self._fail(handler, family, verb, int(value))
                    return
            elif verb == "SLEEP":
                if not done:
                    time.sleep(float(words))
            elif verb in {"HANG", "STALL"}:
                if verb == "STALL":
                    handler._begin()
                self.closing.wait()
                return
            elif verb in TOOLS:
                used += 1
                if used > done:
                    call = FAMILIES[family].tool(body, verb, words)
                    events = FAMILIES[family].call(*call, number)
                    handler._send(
                        200,
                        events,
                        "text/event-stream" if _streams(family, handler.path, body) else "application/json",
                    )
                    return
        said = "\n".join(
            "x" * int(words) if verb == "BIG" else words for verb, words in steps if verb in {"SAY", "BIG"}
        )
        said = said or "ok"
        if not _streams(family, handler.path, body):
            handler._send(200, FAMILIES[family].whole(said), "application/json")
            return
        handler._send(200, FAMILIES[family].say(said), "text/event-stream")

    def _fail(self, handler: Any, family: str, verb: str, value: int) -> None:
        if verb == "STATUS":
            data, headers = FAMILIES[family].error(value), {"retry_after": "1"}
        else:
            data, headers = FAMILIES[family].limit(value)
        handler._send(
            429 if verb == "LIMIT" else value, json.dumps(data).encode(), "application/json", **headers
        )


def _family(path: str) -> str:
    if "/messages" in path:
        return "anthropic"
    if "/responses" in path:
        return "responses"
    return "gemini" if "generateContent" in path or "GenerateContent" in path else "chat"


def _streams(family: str, path: str, body: dict[str, Any]) -> bool:
    return "stream" in path.lower() if family == "gemini" else bool(body.get("stream"))


def _sse(*events: dict[str, Any], named: bool = False) -> bytes:
    return b"".join(
        (f"event: {event['type']}\n" if named else "").encode()
        + b"data: "
        + json.dumps(event).encode()
        + b"\n\n"
        for event in events
    )


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text") or "") for part in content or () if isinstance(part, dict))


class Anthropic:
    """Messages."""

    @staticmethod
    def read(body: dict[str, Any]) -> tuple[str, int]:
        prompt, done = "", 0
        for message in body.get("messages", ()):
            content = message.get("content")
            if message["role"] != "user":
                continue
            results = (
                [p for p in content if p.get("type") == "tool_result"] if isinstance(content, list) else []
            )
            if results:
                done += len(results)
            elif STEP.search(_words(content)):
                prompt, done = _words(content), 0
        return prompt, done

    @staticmethod
    def tool(body: dict[str, Any], verb: str, words: str) -> tuple[str, dict[str, Any]]:
        path, _, text = words.partition(" ")
        if verb == "SHELL":
            return "Bash", {"command": words, "description": "as told"}
        if verb == "READ":
            return "Read", {"file_path": path}
        if verb == "ASK":
            options = [
                {"label": "one", "description": "the one"},
                {"label": "two", "description": "the other"},
            ]
            question = {"question": words, "header": "Choice", "multiSelect": False, "options": options}
            return "AskUserQuestion", {"questions": [question]}
        if verb == "EDIT":
            old, new = text.split(" ")
            return "Edit", {"file_path": path, "old_string": old, "new_string": new}
        return "Write", {"file_path": path, "content": text + "\n"}

    @staticmethod
    def _turn(block: dict[str, Any], delta: dict[str, Any], stop: str) -> bytes:
        # Turns of one id are taken for one turn.
        number = next(_NUMBERS)
        usage = {"input_tokens": 100, "output_tokens": 20}
        message = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": "m", "content": []}
        return _sse(
            {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage},
            {"type": "message_stop"},
            named=True,
        )

    @classmethod
    def call(cls, name: str, given: dict[str, Any], number: int) -> bytes:
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {}}
        return cls._turn(block, {"type": "input_json_delta", "partial_json": json.dumps(given)}, "tool_use")

    @classmethod
    def say(cls, words: str) -> bytes:
        return cls._turn({"type": "text", "text": ""}, {"type": "text_delta", "text": words}, "end_turn")

    @staticmethod
    def whole(words: str) -> bytes:
        return json.dumps(
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "stop_reason": "end_turn",
                "content": [{"type": "text", "text": words}],
                "usage": {"input_tokens": 1, "output_tokens": 1},
            }
        ).encode()

    @staticmethod
    def error(status: int) -> dict[str, Any]:
        return {"type": "error", "error": {"type": "api_error", "message": f"scripted {status}"}}

    @staticmethod
    def limit(seconds: int) -> tuple[dict[str, Any], dict[str, str]]:
        error = {
            "type": "rate_limit_error",
            "message": "This request would exceed your account's rate limit.",
        }
        headers = {
            "anthropic_ratelimit_unified_status": "rejected",
            "anthropic_ratelimit_unified_reset": str(int(time.time()) + seconds),
            "anthropic_ratelimit_unified_representative_claim": "five_hour",
            "retry_after": str(seconds),
        }
        return {"type": "error", "error": error}, headers


class Responses:
    """OpenAI Responses, as Codex speaks it to a model that it does not know: with a shell tool only."""

    @staticmethod
    def read(body: dict[str, Any]) -> tuple[str, int]:
        prompt, done = "", 0
        for item in body.get("input", ()):
            if item.get("type") in {"function_call_output", "custom_tool_call_output"}:
                done += 1
            elif item.get("role") == "user" and STEP.search(_words(item.get("content"))):
                prompt, done = _words(item.get("content")), 0
        return prompt, done

    @staticmethod
    def tool(body: dict[str, Any], verb: str, words: str) -> tuple[str, dict[str, Any]]:
        if verb == "WRITE":
            path, _, text = words.partition(" ")
            words = f"printf '%s\\n' '{text}' > '{path}'"
        if verb == "EDIT":
            path, old, new = words.split(" ")
            patch = f"*** Begin Patch\n*** Update File: {path}\n@@\n-{old}\n+{new}\n*** End Patch"
            words = f"apply_patch <<'EOF'\n{patch}\nEOF"
        names = [tool.get("name") for tool in body.get("tools") or ()]
        if "exec_command" in names:
            return "exec_command", {"cmd": words}
        return "shell", {"command": ["bash", "-c", words]}

    @staticmethod
    def _done(item: dict[str, Any]) -> bytes:
        usage = {
            "input_tokens": 100,
            "input_tokens_details": None,
            "output_tokens": 20,
            "output_tokens_details": None,
            "total_tokens": 120,
        }
        return _sse(
            {"type": "response.created", "response": {"id": "resp_1"}},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": {"id": "resp_1", "usage": usage}},
            named=True,
        )

    @classmethod
    def call(cls, name: str, given: dict[str, Any], number: int) -> bytes:
        item = {"type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}", "name": name}
        return cls._done({**item, "arguments": json.dumps(given)})

    @classmethod
    def say(cls, words: str) -> bytes:
        content = [{"type": "output_text", "text": words}]
        return cls._done({"type": "message", "id": "m", "role": "assistant", "content": content})

    whole = say

    @staticmethod
    def error(status: int) -> dict[str, Any]:
        return {"error": {"type": "api_error", "message": f"scripted {status}"}}

    @staticmethod
    def limit(seconds: int) -> tuple[dict[str, Any], dict[str, str]]:
        error = {
            "type": "usage_limit_reached",
            "message": "The usage limit has been reached",
            "plan_type": "plus",
        }
        return {"error": {**error, "resets_at": int(time.time()) + seconds, "resets_in_seconds": seconds}}, {}


class Chat:
    """OpenAI chat completions, as opencode speaks it."""

    @staticmethod
    def read(body: dict[str, Any]) -> tuple[str, int]:
        prompt, done = "", 0
        for message in body.get("messages", ()):
            if message["role"] == "tool":
                done += 1
            elif message["role"] == "user" and STEP.search(_words(message.get("content")).strip('"')):
                prompt, done = _words(message.get("content")).strip('"'), 0
        return prompt, done

    @staticmethod
    def tool(body: dict[str, Any], verb: str, words: str) -> tuple[str, dict[str, Any]]:
        path, _, text = words.partition(" ")
        if verb == "SHELL":
            return "bash", {"command": words, "description": "as told"}
        if verb == "READ":
            return "read", {"filePath": path}
        if verb == "EDIT":
            old, new = text.split(" ")
            return "edit", {"filePath": path, "oldString": old, "newString": new}
        return "write", {"filePath": path, "content": text + "\n"}

    @staticmethod
    def _turn(delta: dict[str, Any], finish: str) -> bytes:
        base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m1"}
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        return (
            _sse(
                {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
                {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "usage": usage},
            )
            + b"data: [DONE]\n\n"
        )

    @classmethod
    def call(cls, name: str, given: dict[str, Any], number: int) -> bytes:
        function = {"name": name, "arguments": json.dumps(given)}
        call = {"index": 0, "id": f"call_{number}", "type": "function", "function": function}
        return cls._turn({"role": "assistant", "tool_calls": [call]}, "tool_calls")

    @classmethod
    def say(cls, words: str) -> bytes:
        return cls._turn({"role": "assistant", "content": words}, "stop")

    @staticmethod
    def whole(words: str) -> bytes:
        message = {"role": "assistant", "content": words}
        return json.dumps(
            {
                "id": "c",
                "object": "chat.completion",
                "created": 1,
                "model": "m1",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        ).encode()

    @staticmethod
    def error(status: int) -> dict[str, Any]:
        return {"error": {"type": "api_error", "message": f"scripted {status}"}}

    @staticmethod
    def limit(seconds: int) -> tuple[dict[str, Any], dict[str, str]]:
        message = f"Rate limit reached for m1. Please try again in {seconds}s."
        error = {"type": "requests", "code": "rate_limit_exceeded", "message": message}
        return {"error": error}, {"retry_after": str(seconds)}


class Gemini:
    """generateContent and its stream."""

    @staticmethod
    def read(body: dict[str, Any]) -> tuple[str, int]:
        prompt, done = "", 0
        for content in body.get("contents", ()):
            parts = content.get("parts") or []
            if any("functionResponse" in part for part in parts):
                done += 1
            elif content.get("role") == "user" and STEP.search(_words(parts)):
                prompt, done = _words(parts), 0
        return prompt, done

    @staticmethod
    def tool(body: dict[str, Any], verb: str, words: str) -> tuple[str, dict[str, Any]]:
        path, _, text = words.partition(" ")
        if verb == "SHELL":
            return "run_shell_command", {"command": words, "description": "as told"}
        if verb == "EDIT":
            old, new = text.split(" ")
            return "replace", {
                "file_path": path,
                "old_string": old,
                "new_string": new,
                "instruction": "as told",
            }
        return "write_file", {"file_path": path, "content": text + "\n"}

    @staticmethod
    def _whole(part: dict[str, Any]) -> dict[str, Any]:
        usage = {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 120}
        candidate = {"index": 0, "finishReason": "STOP", "content": {"role": "model", "parts": [part]}}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m1"}

    @classmethod
    def call(cls, name: str, given: dict[str, Any], number: int) -> bytes:
        return _sse(cls._whole({"functionCall": {"id": f"f{number}", "name": name, "args": given}}))

    @classmethod
    def say(cls, words: str) -> bytes:
        return _sse(cls._whole({"text": words}))

    @classmethod
    def whole(cls, words: str) -> bytes:
        return json.dumps(cls._whole({"text": words})).encode()

    @staticmethod
    def error(status: int) -> dict[str, Any]:
        return {
            "error": {
                "code": status,
                "message": f"scripted {status}",
                "status": "UNAVAILABLE" if status >= 500 else "UNAUTHENTICATED",
            }
        }

    @staticmethod
    def limit(seconds: int) -> tuple[dict[str, Any], dict[str, str]]:
        retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{seconds}s"}
        quota = {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
        }
        message = f"You exceeded your current quota. Please retry in {seconds}.5s."
        error = {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": [quota, retry]}
        return {"error": error}, {}


FAMILIES: dict[str, Any] = {"anthropic": Anthropic, "responses": Responses, "chat": Chat, "gemini": Gemini}
