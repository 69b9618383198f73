"""The built-in handlers. They are plugins like any other: found through entry points, written against `aipass` only."""
