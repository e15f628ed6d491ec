"""The judge: rules, a sandbox, and a verdict."""
