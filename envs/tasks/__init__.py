"""The tasks of the registered environments, one file each."""
