"""The VM's network: what the host describes, checked, and made so by the guest's own kernel."""
