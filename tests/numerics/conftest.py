import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "parallel_threads_limit(n): in scipy's tests; of no meaning here")
