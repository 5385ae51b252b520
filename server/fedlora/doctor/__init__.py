"""What a machine lacks for a run, before the run finds out. Each check looks at one thing, and changes nothing."""
