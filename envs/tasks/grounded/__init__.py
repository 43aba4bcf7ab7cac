"""GroundedSummary: a procedural world, its exact oracle, and the learned entailment reward."""
