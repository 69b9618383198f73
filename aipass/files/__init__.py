"""Files on any filesystem: names that fit, atomic exchange, removal of large folders."""
