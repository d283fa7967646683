"""LIP in other people's training loops: one module for each library, which alone imports it.

:mod:`lip_fast.integrations.lightning`, :mod:`lip_fast.integrations.transformers`,
:mod:`lip_fast.integrations.accelerate`; ``pip install lip-fast[integrations]`` installs the libraries. Each
takes the steps that a plain loop with :meth:`lip_fast.LIP.attach` takes, to the bit.
"""
