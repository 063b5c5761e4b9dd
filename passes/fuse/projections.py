"""Projections of one input by several weights become one."""

from __future__ import annotations
