//! SMTP accounts: argon2id hashes and a cache of verified logins.
