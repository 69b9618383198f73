"""What agents know: state files, notes, and the search in them."""
