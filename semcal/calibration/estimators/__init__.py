"""From M samples per question to confidence, and what finite M does to it."""
