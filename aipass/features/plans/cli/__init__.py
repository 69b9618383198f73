"""Its verbs: one file each."""
