"""Runs as a configuration file names them."""
