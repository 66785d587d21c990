"""The report: one HTML page about a trained run and the version exported from it."""
