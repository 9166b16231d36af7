//! Builds the parts, hands parts to parts, stops them; the only module that knows all of them.
