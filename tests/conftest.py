"""What holds for all tests."""

from hypothesis import settings

# A test says what is right, never how long it takes: kernels may be compiled meanwhile, or others want the machine.
settings.register_profile("puna", deadline=None)
settings.load_profile("puna")
