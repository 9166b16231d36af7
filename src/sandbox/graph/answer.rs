//! How Graph answers: the headers every answer has, and the shape of an error.
//!
//! <https://learn.microsoft.com/graph/errors>

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use jiff::Timestamp;
use serde_json::json;

use super::error::{GraphError, usual};
use super::work::Success;
use crate::sandbox::fault::{self, Operation, Spoilt};
use crate::sandbox::tenant::is_guid;
use crate::sandbox::witness::Answered;
use crate::sandbox::{World, guid, html_error};

/// What every answer to one request has in common.
pub(super) struct Answer {
    pub(super) request_id: String,
    pub(super) client_request_id: String,
}

impl Answer {
    pub(super) fn to(headers: &HeaderMap) -> Answer {
        let given = headers
            .get("client-request-id")
            .and_then(|it| it.to_str().ok())
            .filter(|it| is_guid(it));
        let request_id = guid();
        let client_request_id = given.map_or_else(|| request_id.clone(), str::to_owned);
        Answer {
            request_id,
            client_request_id,
        }
    }

    pub(super) fn succeed(
        &self,
        world: &World,
        operation: Operation,
        mailbox: &str,
        success: Success,
    ) -> Response {
        let status = Answered::Status(success.status.as_u16());
        world.record(
            operation,
            mailbox,
            status,
            success.delivered,
            &self.request_id,
            "",
        );
        let mut response = self.respond(success.status, success.body.map(|it| it.to_string()));
        if let Some(location) = success.location.and_then(|it| HeaderValue::from_str(&it).ok()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }

    pub(super) fn refuse(
        &self,
        world: &World,
        operation: Operation,
        mailbox: &str,
        refusal: &GraphError,
    ) -> Response {
        let status = Answered::Status(refusal.status);
        world.record(operation, mailbox, status, None, &self.request_id, &refusal.code);
        let body = (!refusal.code.is_empty()).then(|| self.error(&refusal.code, &refusal.message));
        let mut response = self.respond(status_code(refusal.status), body);
        for (name, value) in [
            (header::RETRY_AFTER, &refusal.retry_after),
            (header::WWW_AUTHENTICATE, &refusal.challenge),
        ] {
            if let Some(value) = value.as_deref().and_then(|it| HeaderValue::from_str(it).ok()) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }

    pub(super) fn spoil(
        &self,
        world: &World,
        operation: Operation,
        mailbox: &str,
        spoilt: &Spoilt,
        delivered: Option<u64>,
    ) -> Response {
        let (code, message) = usual(spoilt.status);
        let code = spoilt.code.as_deref().unwrap_or(code);
        let message = spoilt.message.as_deref().unwrap_or(message);
        world.record(
            operation,
            mailbox,
            Answered::Status(spoilt.status),
            delivered,
            &self.request_id,
            code,
        );
        let error = self.error(code, message);
        let success = spoilt.status < 300;
        let body = match spoilt.body {
            fault::Body::Json if success => None,
            fault::Body::Json => Some(error),
            fault::Body::Html => Some(html_error(spoilt.status)),
            fault::Body::Empty => None,
            fault::Body::Truncated => Some(error[..error.len() / 2].to_owned()),
        };
        let mut response = self.respond(status_code(spoilt.status), body);
        if spoilt.body == fault::Body::Html {
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
        }
        if let Some(value) = spoilt
            .retry_after
            .as_deref()
            .and_then(|it| HeaderValue::from_str(it).ok())
        {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }

    fn error(&self, code: &str, message: &str) -> String {
        json!({"error": {
            "code": code,
            "message": message,
            "innerError": {
                "date": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S").to_string(),
                "request-id": self.request_id,
                "client-request-id": self.client_request_id,
            },
        }})
        .to_string()
    }

    fn respond(&self, status: StatusCode, body: Option<String>) -> Response {
        let has_body = body.is_some();
        let mut response = Response::new(body.map_or_else(Body::empty, Body::from));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        for (name, value) in [
            ("request-id", self.request_id.as_str()),
            ("client-request-id", self.client_request_id.as_str()),
            ("cache-control", "no-store"),
            ("strict-transport-security", "max-age=31536000"),
            (
                "x-ms-ags-diagnostic",
                r#"{"ServerInfo":{"DataCenter":"Sandbox","Slice":"E","Ring":"0","ScaleUnit":"000","RoleInstance":"SANDBOX0000001"}}"#,
            ),
        ] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        if has_body {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        response
    }
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
