"""Texts around a prompt: chat templates and format strings."""
