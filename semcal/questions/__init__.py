"""What is asked: questions, datasets and prompts by style. Knows no model."""
