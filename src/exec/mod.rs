//! Where processes run: one trait, one wrapper, one executor per kind of cluster. Knows no TOML, no plan and no key.
