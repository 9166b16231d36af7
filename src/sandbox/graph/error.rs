//! Graph's errors: <https://learn.microsoft.com/graph/errors>, and what Exchange says in them.

use std::borrow::Cow;

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sandbox) struct GraphError {
    pub(in crate::sandbox) status: u16,
    pub(in crate::sandbox) code: Cow<'static, str>,
    pub(in crate::sandbox) message: String,
    pub(in crate::sandbox) retry_after: Option<String>,
    pub(in crate::sandbox) challenge: Option<String>,
}

impl GraphError {
    pub(in crate::sandbox) fn new(status: u16, code: &'static str, message: impl Into<String>) -> GraphError {
        GraphError {
            status,
            code: code.into(),
            message: message.into(),
            retry_after: None,
            challenge: None,
        }
    }

    /// 413 comes from the gateway before Graph, and has no JSON.
    pub(super) fn too_large() -> GraphError {
        GraphError::new(413, "", "")
    }

    pub(super) fn unauthorized(message: impl Into<String>) -> GraphError {
        GraphError::new(401, "InvalidAuthenticationToken", message)
    }

    pub(super) fn access_denied() -> GraphError {
        GraphError::new(
            403,
            "ErrorAccessDenied",
            "Access is denied. Check credentials and try again.",
        )
    }

    pub(super) fn undeserializable() -> GraphError {
        GraphError::new(400, "UnableToDeserializePostBody", "were unable to deserialize ")
    }

    pub(super) fn body(message: impl Into<String>) -> GraphError {
        GraphError::new(400, "RequestBodyRead", message)
    }

    pub(super) fn invalid_recipients(detail: impl std::fmt::Display) -> GraphError {
        GraphError::new(
            400,
            "ErrorInvalidRecipients",
            format!("At least one recipient is not valid., {detail}"),
        )
    }

    pub(super) fn send_as_denied() -> GraphError {
        GraphError::new(
            403,
            "ErrorSendAsDenied",
            "The user account which was used to submit this request does not have the right to send mail on behalf \
             of the specified sending account., Cannot submit message.",
        )
    }

    pub(super) fn not_found() -> GraphError {
        GraphError::new(
            404,
            "ErrorItemNotFound",
            "The specified object was not found in the store.",
        )
    }
}

/// What Graph usually says with a status, where a fault does not say it.
pub(super) fn usual(status: u16) -> (&'static str, &'static str) {
    match status {
        400 => ("BadRequest", "Bad request."),
        401 => (
            "InvalidAuthenticationToken",
            "Lifetime validation failed, the token is expired.",
        ),
        403 => (
            "ErrorAccessDenied",
            "Access is denied. Check credentials and try again.",
        ),
        404 => (
            "ErrorItemNotFound",
            "The specified object was not found in the store.",
        ),
        408 => ("ErrorTimeoutExpired", "The request has timed out."),
        409 => (
            "ErrorIrresolvableConflict",
            "The send or update operation could not be performed because the change key passed in the request does not match the current change key for the item.",
        ),
        413 => (
            "ErrorMessageSizeExceeded",
            "The message exceeds the maximum supported size.",
        ),
        429 => (
            "ApplicationThrottled",
            "Application is over its MailboxConcurrency limit.",
        ),
        500 => (
            "ErrorInternalServerError",
            "An internal server error occurred. The operation failed.",
        ),
        502 => ("BadGateway", "Failed to execute backend request."),
        503 => ("serviceNotAvailable", "The service is temporarily unavailable."),
        504 => ("UnknownError", ""),
        507 => ("ErrorQuotaExceeded", "The mailbox is full."),
        509 => ("BandwidthLimitExceeded", "The bandwidth limit has been exceeded."),
        _ => ("UnknownError", ""),
    }
}
