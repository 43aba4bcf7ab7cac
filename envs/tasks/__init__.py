"""The tasks behind the registered environments, a file each."""
