"""Normalizations: LayerNormalization, RMSNormalization, GroupNormalization, InstanceNormalization."""

from __future__ import annotations
