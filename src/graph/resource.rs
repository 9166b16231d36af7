//! Graph's JSON in Graph's names. Pure.
