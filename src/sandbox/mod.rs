//! A stand-in Microsoft cloud: Entra token endpoint and Graph mail. Imports nothing of the gateway, so that it is a witness and not an accomplice.
