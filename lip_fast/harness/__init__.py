"""The training harness behind ``lip-fast``.

The only part of the package that imports scikit-learn, matplotlib, jsonargparse and tqdm (the extra
``harness``); nothing in the core imports it.
"""
