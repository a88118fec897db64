"""Figures of predictability, drawn on bare Matplotlib figures."""
