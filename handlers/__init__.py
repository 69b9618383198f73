"""The built-in handlers: plugins like any other, found through entry points."""
