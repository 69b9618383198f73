"""The verb of the configuration: reload."""
