"""Operations of a step of LIP on a weight (l, q), by how the weight is decomposed; those of labels aside.

k directions are kept, r below them refitted, and d = min(l, q).
"""

__all__ = ["by_products", "exact", "products_pay", "truncated"]

# A symmetric eigenproblem with vectors (divide and conquer; Golub and Van Loan, Matrix Computations, section
# 8.7), in units of d^3.
_EIGENPROBLEM = 9
# What the exact path takes on a host, in operations of float32 products: float64 counts twice, and LAPACK
# runs at half the speed of products. Measured within a tenth from 1000 x 2048 to 50257 x 768.
_FLOAT64, _LAPACK = 2, 16
# By products in one call: the small algebra between them takes as long as so many operations more. Measured
# from 150 x 512 to 50257 x 768, where it decides rightly each time; composed of torch's operations a step
# takes a third longer, so that near the border an exact one would be a little faster.
_SKINNY, _CALLS = 1.05, 1e7


def exact(l: int, q: int, r: int) -> float:
    """The Gram matrix of the small side, its eigenvectors, the tail's vectors on the long side, the write."""
    d = min(l, q)
    return 2.0 * d * l * q + _EIGENPROBLEM * d**3 + 4.0 * l * q * r


def truncated(l: int, q: int, columns: int, written: int) -> float:
    """Two products with so many columns, two CholeskyQR on either side, a small decomposition, the write."""
    small = 6.0 * (l + q) * columns**2 + 20.0 * columns**3
    return 2.0 * l * q * (2 * columns + written) + small


def by_products(l: int, q: int, k: int, r: int, *, guards: int, fresh: int, drop: bool) -> float:
    """Of :func:`lip_fast.projected.split` and the write."""
    n, m = max(k - guards, 0), min(r + fresh, min(l, q) - k)
    tail = min(guards, k) + m
    products = 2.0 * l * q * (2 * (k + m) + (k + 2 * m if drop else r))
    # A Gram matrix and a triangular solve on the side of the classes, and a factor.
    kept = 2.4 * l * n * n + 0.35 * n**3
    # Two projections off the kept columns, four small factorisations, the eigenproblem, and the rotation.
    rest = 8.0 * l * n * tail + (12.0 * l + 4.0 * q) * tail**2 + _EIGENPROBLEM * tail**3
    rotation = (2.0 * l + 4.0 * q) * n * m
    return products + kept + rest + rotation


def products_pay(l: int, q: int, remaining: int, flops: float) -> bool:
    """Whether a step by products, of so many operations, is faster on a host than an exact one.

    An exact step needs the vectors of the ``remaining`` directions alone. Where one side is much longer than
    the other and few directions remain, it is the faster one.
    """
    d = min(l, q)
    theirs = _FLOAT64 * 2.0 * d * l * q + _LAPACK * d**3 + (2 * _FLOAT64 + 2.0) * l * q * remaining
    return _SKINNY * flops + _CALLS < theirs
