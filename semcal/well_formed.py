"""Text that every file and terminal can hold."""


def well_formed(text: str) -> str:
    """The same text with U+FFFD for each half of a surrogate pair without its other half, which UTF-8 cannot encode.

    >>> well_formed("red \\ud83d")
    'red \ufffd'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
