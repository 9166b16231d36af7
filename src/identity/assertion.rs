//! The client assertion: a signed JWT (RFC 7523, Microsoft's certificate-credentials page). Pure.
