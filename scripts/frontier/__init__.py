"""Reruns where, when and from whom to distil on the embedded tasks, with equal tokens: reproduce_frontier.py."""
