"""The network, one layer a file."""
