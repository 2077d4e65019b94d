"""Cloud Hypervisor as a VMM: its REST interface, its events, and how a VmSpec is rendered for it."""
