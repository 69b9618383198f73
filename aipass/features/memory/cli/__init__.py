"""The verbs of state files and memory: note, trinity, forget; one module each."""
