"""Everything below «give me a VM with this spec»."""
