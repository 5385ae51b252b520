"""What a finished run leaves: its model loaded, exported, merged, described, and checked with PEFT."""
