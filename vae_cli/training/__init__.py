"""The loop, and what stands around it: from a configuration to a finished run folder."""
