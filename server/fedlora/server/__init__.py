"""The aggregation server: a run from its claim to its report, on every engine; the rooms hold its parts."""
