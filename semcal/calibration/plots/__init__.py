"""Figures of calibration, drawn on bare Matplotlib figures."""
