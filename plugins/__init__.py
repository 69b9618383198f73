"""The built-in drivers and optional parts. They are plugins like any other."""
