"""Settings of every test run."""

from hypothesis import HealthCheck, settings

# The same examples on every machine, however busy it is.
settings.register_profile("workspace", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("workspace")
