"""Git itself: how it is asked, read and hooked. Knows no feature."""
