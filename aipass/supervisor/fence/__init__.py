"""The fence (seccomp, single files) and the wall (Landlock, folders) around a run. Standard library only."""
