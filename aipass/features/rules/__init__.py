"""Rules of aipass.toml: `[[on]]`, and their times."""
