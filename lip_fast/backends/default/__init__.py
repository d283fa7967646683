"""Every op in plain torch (and numpy for the counter-based bits): one op a file, named after the op.

These kernels run on any device. On CPU they take the short way round a host value; elsewhere a flag stays on
the device. Decompositions of small matrices go to LAPACK or its counterpart on the device.
"""
