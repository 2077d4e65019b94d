"""Talking to systemd: what a scope is called and may hold, and the bus. Imported where one is wanted only."""
