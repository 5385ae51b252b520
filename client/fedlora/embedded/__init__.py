"""What ships inside the package: the presets, their data and a model, with their notices (NOTICE.md)."""
