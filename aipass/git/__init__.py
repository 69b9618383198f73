"""What aipass asks of git, and does with it."""
