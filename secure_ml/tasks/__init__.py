"""The document models: one file each, with one function of the file's name that returns its `Task`.

Every function takes ``tiny=True`` for a variant made in code, on which the laws run anywhere in seconds.
"""
