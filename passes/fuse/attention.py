"""Attention by meaning."""

from __future__ import annotations
