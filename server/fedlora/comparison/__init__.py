"""Methods and settings side by side, on the same data and draws, with what can be said of the differences."""
