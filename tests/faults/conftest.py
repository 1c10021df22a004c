"""The number of seeded cases of each kind."""

DEFAULT_CASES = 6


def pytest_generate_tests(metafunc):
    if "fault_case" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--fault-cases", None)
        metafunc.parametrize("fault_case", range(DEFAULT_CASES if wanted is None else wanted))
