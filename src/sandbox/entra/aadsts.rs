//! Entra's error codes: <https://learn.microsoft.com/entra/identity-platform/reference-error-codes>.

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sandbox) struct Refusal {
    pub(in crate::sandbox) code: u32,
    pub(in crate::sandbox) message: String,
}

impl Refusal {
    pub(in crate::sandbox) fn new(code: u32, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
        }
    }
}

/// The OAuth error (RFC 6749 §5.2) and the HTTP status that go with a code.
pub(super) fn kind(code: u32) -> (&'static str, u16) {
    row(code).map_or(("invalid_request", 400), |(_, error, status, _)| {
        (*error, *status)
    })
}

/// The refusal a fault asks for, in the words Entra has for it.
pub(super) fn raised(code: u32) -> Refusal {
    Refusal::new(
        code,
        row(code).map_or("An error has occurred.", |(_, _, _, message)| *message),
    )
}

fn row(code: u32) -> Option<&'static (u32, &'static str, u16, &'static str)> {
    TABLE.iter().find(|row| row.0 == code)
}

const TABLE: &[(u32, &str, u16, &str)] = &[
    (50_012, "invalid_client", 401, "Authentication failed."),
    (
        50_013,
        "invalid_grant",
        400,
        "Assertion failed signature validation.",
    ),
    (
        50_027,
        "invalid_client",
        401,
        "JWT token is invalid or malformed.",
    ),
    (
        50_033,
        "temporarily_unavailable",
        503,
        "A transient error has occurred. Please try again.",
    ),
    (
        50_034,
        "invalid_grant",
        400,
        "The user account does not exist in the directory.",
    ),
    (
        50_048,
        "invalid_client",
        401,
        "Subject must match Issuer claim in the client assertion.",
    ),
    (
        50_196,
        "invalid_request",
        400,
        "The server terminated an operation because it encountered a client request loop.",
    ),
    (
        53_003,
        "access_denied",
        400,
        "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance.",
    ),
    (
        70_003,
        "unsupported_grant_type",
        400,
        "The app requested an unsupported grant type.",
    ),
    (
        70_011,
        "invalid_scope",
        400,
        "The provided value for the input parameter 'scope' is not valid.",
    ),
    (
        70_021,
        "invalid_request",
        400,
        "No matching federated identity record found for presented assertion.",
    ),
    (
        90_002,
        "invalid_request",
        400,
        "Tenant not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.",
    ),
    (
        90_006,
        "temporarily_unavailable",
        503,
        "External server retryable error.",
    ),
    (
        90_012,
        "temporarily_unavailable",
        503,
        "The request has timed out.",
    ),
    (
        90_024,
        "temporarily_unavailable",
        503,
        "Request budget exceeded. A transient error has occurred. Please try again.",
    ),
    (
        90_033,
        "temporarily_unavailable",
        503,
        "A transient error has occurred. Please try again.",
    ),
    (
        90_055,
        "temporarily_unavailable",
        429,
        "The server has terminated the request because there are too many of them for this tenant.",
    ),
    (
        500_011,
        "invalid_resource",
        400,
        "The resource principal was not found in the tenant.",
    ),
    (
        700_016,
        "unauthorized_client",
        400,
        "Application was not found in the directory.",
    ),
    (
        700_021,
        "invalid_client",
        401,
        "Client assertion application identifier doesn't match 'client_id' parameter.",
    ),
    (
        700_023,
        "invalid_client",
        401,
        "Client assertion audience claim does not match Realm issuer.",
    ),
    (
        700_024,
        "invalid_client",
        401,
        "Client assertion is not within its valid time range.",
    ),
    (
        700_025,
        "invalid_client",
        401,
        "Client is public so neither 'client_assertion' nor 'client_secret' should be presented.",
    ),
    (
        700_027,
        "invalid_client",
        401,
        "The certificate with identifier used to sign the client assertion is not registered on application. [Reason - The key was not found.]",
    ),
    (
        700_030,
        "invalid_client",
        401,
        "Invalid certificate - subject name in certificate is not authorized.",
    ),
    (
        700_211,
        "invalid_client",
        401,
        "No matching federated identity record found for presented assertion issuer.",
    ),
    (
        700_212,
        "invalid_client",
        401,
        "No matching federated identity record found for presented assertion audience.",
    ),
    (
        700_213,
        "invalid_client",
        401,
        "No matching federated identity record found for presented assertion subject.",
    ),
    (
        900_023,
        "invalid_request",
        400,
        "Specified tenant identifier is neither a valid DNS name, nor a valid external domain.",
    ),
    (
        900_144,
        "invalid_request",
        400,
        "The request body must contain a required parameter.",
    ),
    (
        900_382,
        "invalid_request",
        400,
        "Confidential Client is not supported in Cross Cloud request.",
    ),
    (
        900_561,
        "invalid_request",
        405,
        "The endpoint only accepts POST requests.",
    ),
    (
        1_002_012,
        "invalid_scope",
        400,
        "The provided value for scope is not valid.",
    ),
    (
        1_400_000,
        "invalid_request",
        400,
        "The value of the 'claims' parameter is not valid.",
    ),
    (
        5_002_730,
        "invalid_client",
        401,
        "Invalid JWT token. The key type does not fit the algorithm.",
    ),
    (7_000_112, "unauthorized_client", 400, "Application is disabled."),
    (
        7_000_215,
        "invalid_client",
        401,
        "Invalid client secret provided.",
    ),
    (
        7_000_218,
        "invalid_client",
        401,
        "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.",
    ),
    (
        7_000_222,
        "invalid_client",
        401,
        "The provided client secret keys for the app are expired.",
    ),
    (
        9_002_313,
        "invalid_request",
        400,
        "Invalid request. Request is malformed or invalid.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_has_each_code_once() {
        assert!(TABLE.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(kind(700_027), ("invalid_client", 401));
        assert_eq!(
            raised(90_033).message,
            "A transient error has occurred. Please try again."
        );
        assert_eq!(kind(1), ("invalid_request", 400));
    }
}
