"""What the scripts have in common that compare many methods on several tasks and write a page of it in docs/."""
