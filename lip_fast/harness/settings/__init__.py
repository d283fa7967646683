"""The settings of ``lip-fast train`` and ``lip-fast study``: names, defaults, checks, how they are read."""
