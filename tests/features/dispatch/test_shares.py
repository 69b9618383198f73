"""What of the user's own a CLI finds in its agent's folder."""

from __future__ import annotations

import os

import pytest

from aipass import Share
from aipass.features.dispatch.shares import furnish


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/.cli").mkdir(parents=True)
    (tmp_path / "state").mkdir()
    return tmp_path


def test_a_link_leads_to_the_users_file_and_a_copy_follows_it(home):
    (home / "home/.cli/auth").write_text("signed in")
    (home / "home/.cli/settings").write_text("one")
    shares = [
        Share("deep/auth", "~/.cli/auth"),
        Share("settings", "~/.cli/settings", copied=True),
        Share("no", "~/.cli/no"),
    ]
    furnish(home / "state", shares)
    assert os.readlink(home / "state/deep/auth") == str(home / "home/.cli/auth")
    assert (home / "state/settings").stat().st_mode & 0o777 == 0o600
    assert not (home / "state/no").exists()
    (home / "state/settings").write_text("the CLI's own")
    furnish(home / "state", shares)
    assert (home / "state/settings").read_text() == "the CLI's own"
    (home / "home/.cli/settings").write_text("two")
    later = (home / "state/settings").stat().st_mtime + 10
    os.utime(home / "home/.cli/settings", (later, later))
    furnish(home / "state", shares)
    assert (home / "state/settings").read_text() == "two"
    assert (home / "home/.cli/settings").read_text() == "two"


def test_what_a_cli_put_in_the_links_place_stays(home):
    (home / "home/.cli/auth").write_text("old")
    (home / "state/auth").write_text("refreshed")
    furnish(home / "state", [Share("auth", "~/.cli/auth")])
    assert (home / "state/auth").read_text() == "refreshed"


def test_nothing_is_made_through_a_link_that_an_agent_made(home):
    (home / "home/.cli/auth").write_text("x")
    (home / "elsewhere").mkdir()
    (home / "state/deep").symlink_to(home / "elsewhere")
    with pytest.raises(OSError, match="deep"):
        furnish(home / "state", [Share("deep/auth", "~/.cli/auth")])
    (home / "state/copy").symlink_to(home / "elsewhere/copy")
    furnish(home / "state", [Share("copy", "~/.cli/auth", copied=True)])
    assert list((home / "elsewhere").iterdir()) == []
