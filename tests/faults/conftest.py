"""The number of seeded cases of each kind."""

DEFAULT_CASES = 6


def pytest_generate_tests(metafunc):
    if "fault_case" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--fault-cases", None)
        usual = getattr(metafunc.module, "DEFAULT_CASES", {}).get(metafunc.function.__name__, DEFAULT_CASES)
        metafunc.parametrize("fault_case", range(usual if wanted is None else wanted))
