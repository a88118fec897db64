"""What answers mean: extraction, collapsing functions B and the class table. Imports no torch."""
