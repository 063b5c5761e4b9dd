"""Conversion of graphs from and to the representations of other libraries."""
