"""Intervals, paired differences, contrasts and multiple tests, all by groups of questions."""
