"""These tests need PyTorch: without `-m parity` they are not even imported."""


def pytest_ignore_collect(collection_path, config):
    """Leaves the modules here alone unless the parity marker is asked for."""
    chosen = config.option.markexpr
    if collection_path.suffix == ".py" and "parity" in chosen and "not parity" not in chosen:
        return None
    return collection_path.suffix == ".py" or None
