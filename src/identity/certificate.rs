//! A certificate and its private key, from PFX or PEM; thumbprints are computed, never asked for.
