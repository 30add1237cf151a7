"""One run: its options, directory, records, signals and summary."""
