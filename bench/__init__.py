"""Measurements: full-size models without meaning, and a comparison with llama.cpp. See README.md."""
