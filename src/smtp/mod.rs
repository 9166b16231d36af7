//! The SMTP server (RFC 5321): listener, connection, and the pure dialogue.
