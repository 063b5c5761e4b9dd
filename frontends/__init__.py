"""Frontends: models of other frameworks and formats to `planish.ir.Graph`. Imports `planish.ir` only."""
