"""Where text comes from: one TOML file per corpus, and the few lines that load them."""
