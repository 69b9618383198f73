"""Operations on files of any filesystem: names that fit, atomic exchange, and the type of the filesystem."""
