"""The built-in drivers, forges, secret finder and semantic index: plugins like any other."""
