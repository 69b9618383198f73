"""The rules of aipass.toml (`[[on]]`) and their schedules."""
