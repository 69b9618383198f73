"""The forges GitHub and GitLab, through the CLIs `gh` and `glab` with the user's sign-in."""

from __future__ import annotations

from subprocess import SubprocessError
from typing import TYPE_CHECKING

from aipass import AipassError, hookimpl, programs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aipass.features.git.forge import Forge
    from aipass.features.git.pr_records import Pr
    from aipass.features.git.repo import Repo

TIMEOUT_S = 120.0
#: The options of each CLI for our merge methods.
GH_MERGES = {"merge": "--merge", "squash": "--squash", "ff": "--rebase"}
GLAB_MERGES: dict[str, tuple[str, ...]] = {"merge": (), "squash": ("--squash",), "ff": ("--rebase",)}


@hookimpl
def register_forges() -> list[Forge]:
    """Return both forges."""
    return [GitHub(), GitLab()]


class GitHub:
    """GitHub: pushes a PR's branch and opens a pull request with `gh`. Every method raises AipassError."""

    name = "gh"

    def open(self, repo: Repo, pr: Pr, remote: str) -> str | None:
        """Push the branch, and create the pull request if there is none yet. Returns its URL."""
        _push(repo, pr, remote)
        if pr.url is not None:
            return pr.url
        words = ("pr", "create", "--head", _branch(pr), "--title", pr.title, "--body", _body(pr))
        into = ("--base", pr.branch.removeprefix("refs/heads/")) if pr.branch else ()
        return _address(self._run(repo, *words, *into))

    def merge(self, repo: Repo, pr: Pr, remote: str, method: str) -> None:
        """Merge the pull request. `gh` refuses if its head is no longer the commit that was tested here."""
        del remote
        self._run(
            repo,
            "pr",
            "merge",
            pr.url or _branch(pr),
            GH_MERGES[method],
            "--match-head-commit",
            pr.head,
        )

    def close(self, repo: Repo, pr: Pr, remote: str, reason: str) -> None:
        """Close the pull request with a comment that has the reason."""
        del remote
        self._run(repo, "pr", "close", pr.url or _branch(pr), "--comment", reason)

    def _run(self, repo: Repo, *words: str) -> str:
        return _run(repo, self.name, words)


class GitLab:
    """GitLab: the same with merge requests and `glab`, which has other options."""

    name = "glab"

    def open(self, repo: Repo, pr: Pr, remote: str) -> str | None:
        """Push the branch, and create the merge request if there is none yet. Returns its URL."""
        _push(repo, pr, remote)
        if pr.url is not None:
            return pr.url
        words = (
            "mr",
            "create",
            "--source-branch",
            _branch(pr),
            "--title",
            pr.title,
            "--description",
            _body(pr),
            "--yes",
        )
        into = ("--target-branch", pr.branch.removeprefix("refs/heads/")) if pr.branch else ()
        return _address(_run(repo, self.name, (*words, *into)))

    def merge(self, repo: Repo, pr: Pr, remote: str, method: str) -> None:
        """Merge the merge request. `glab` refuses if its head is no longer the commit that was tested here."""
        del remote
        _run(
            repo,
            self.name,
            ("mr", "merge", _branch(pr), "--sha", pr.head, "--yes", *GLAB_MERGES[method]),
        )

    def close(self, repo: Repo, pr: Pr, remote: str, reason: str) -> None:
        """Add a note with the reason, and close the merge request."""
        del remote
        # `glab mr close` has no option for a comment.
        _run(repo, self.name, ("mr", "note", _branch(pr), "--message", reason))
        _run(repo, self.name, ("mr", "close", _branch(pr)))


def _branch(pr: Pr) -> str:
    return pr.ref.removeprefix("refs/heads/")


def _body(pr: Pr) -> str:
    about = f"Made by the agent {pr.agent}" + (f" (dispatch {pr.dispatch})" if pr.dispatch else "")
    return f"{pr.body.strip()}\n\n{about}.".strip()


def _push(repo: Repo, pr: Pr, remote: str) -> None:
    # --force without a lease is safe: the branch belongs to this PR alone.
    repo.run("push", "--quiet", "--no-verify", "--force", remote, f"{pr.head}:{pr.ref}")


def _run(repo: Repo, program: str, words: Sequence[str]) -> str:
    try:
        done = programs.run(
            repo.root,
            [program, *words],
            cwd=repo.top,
            # `gh pr create` runs `git status`, which would start the filters that an agent may have configured.
            env=repo.environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except programs.ProgramMissingError as exc:
        raise AipassError(f"{exc}; then sign in with `{program} auth login`, and ask again") from exc
    except (OSError, SubprocessError) as exc:
        raise AipassError(f"`{program} {' '.join(words[:2])}` could not be run: {exc}") from exc
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[:1000]
        raise AipassError(
            f"`{program} {' '.join(words[:2])}` ended with {done.returncode}: {said or 'it does not say why'}"
        )
    return str(done.stdout)


def _address(said: str) -> str | None:
    """Return the last URL in the output of a CLI; None if there is none."""
    # Before it both CLIs print notes, which can have URLs as well.
    found = [word for word in said.split() if word.startswith(("https://", "http://"))]
    return found[-1] if found else None
