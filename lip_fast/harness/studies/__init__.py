"""What wrong labels do to a classifier's weight: the mathematics, what is measured, tables and figures."""
