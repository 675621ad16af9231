"""From options to a frozen job. Pure: no network, no files but those that options name."""
