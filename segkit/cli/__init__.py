"""The commands: each reads its settings, builds the parts and runs them."""
