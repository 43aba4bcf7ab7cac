"""Makes a smaller model of a pretrained one that keeps its task, and compares ways to heal it."""
