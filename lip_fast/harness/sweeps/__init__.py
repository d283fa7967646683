"""Many runs of ``lip-fast train``: the rows of settings, and the processes that work on them."""
