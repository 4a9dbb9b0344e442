"""ARC tasks and other documents: read them from files and render them as prompts."""
