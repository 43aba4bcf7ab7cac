"""Texts and their tokens: format strings, chat templates, and the token ids of prompts, completions and replies."""
