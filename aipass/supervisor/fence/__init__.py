"""The sandbox of a run: the fence (per file, seccomp) and the wall (per folder, Landlock). Standard library only."""
