//! The Entra token endpoint, `POST /{tenant}/oauth2/v2.0/token`, for the client credentials grant.
//!
//! <https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>

pub(super) mod aadsts;
pub(super) mod assertion;
mod federation;
pub(super) mod tokens;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Form, FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

use self::aadsts::Refusal;
use self::assertion::Expected;
use super::fault::{self, Action, Fault, Operation};
use super::tenant::is_guid;
use super::wire::Peer;
use super::{Answered, World, guid, origin, reset};

/// The only value there is.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A token request is a few kilobytes: the assertion, perhaps with a certificate chain.
const REQUEST_MAX: usize = 256 * 1024;

/// Answers one request to the token endpoint of `tenant`.
pub(super) async fn token(world: Arc<World>, peer: Peer, tenant: String, request: Request) -> Response {
    let fault = world.faults().next(Operation::Token, "");
    let (parts, body) = request.into_parts();
    let answer = Answer::to(&parts.headers);
    if fault
        .as_ref()
        .is_some_and(|it| it.action == Action::ResetBeforeBody)
    {
        world.record(Operation::Token, "", Answered::Reset, None, &answer.trace_id, "");
        return reset(&peer);
    }
    let Ok(body) = axum::body::to_bytes(body, REQUEST_MAX).await else {
        return answer.refuse(&Refusal::new(9_002_313, "The request body could not be read."));
    };
    let latency = world.limits().token_latency_ms;
    if latency > 0 {
        tokio::time::sleep(Duration::from_millis(latency)).await;
    }
    if let Some(Fault {
        action: Action::ExpireTokens | Action::RevokeTokens,
        ..
    }) = &fault
    {
        world.tokens().expire_all();
    }
    let carried_out = match &fault {
        Some(Fault {
            action: Action::Aadsts(code),
            ..
        }) => Err(aadsts::raised(*code)),
        Some(Fault {
            action: Action::Status(_) | Action::ResetAfterBody,
            deliver: false,
            ..
        }) => Ok(Value::Null),
        _ => grant(&world, &tenant, &parts, body).await,
    };
    if let Some(fault) = &fault {
        tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await;
    }
    let response = match (carried_out, fault.map(|it| it.action)) {
        (Ok(_), Some(Action::ResetAfterBody)) => {
            world.record(Operation::Token, "", Answered::Reset, None, &answer.trace_id, "");
            return reset(&peer);
        }
        (Ok(_), Some(Action::Status(spoilt))) => answer.spoil(&spoilt),
        (Ok(token), _) => answer.json(StatusCode::OK, token.to_string()),
        (Err(refusal), _) => answer.refuse(&refusal),
    };
    let status = response.status().as_u16();
    world.record(
        Operation::Token,
        "",
        Answered::Status(status),
        None,
        &answer.trace_id,
        "",
    );
    response
}

/// Every check in order, then a token.
async fn grant(world: &World, tenant: &str, parts: &Parts, body: Bytes) -> Result<Value, Refusal> {
    if parts.method != Method::POST {
        let message = format!(
            "Endpoint only accepts POST requests. Received a {} request.",
            parts.method
        );
        return Err(Refusal::new(900_561, message));
    }
    let settings = world.tenant().clone();
    match settings.knows_tenant(tenant) {
        None => {
            return Err(Refusal::new(
                900_023,
                format!(
                    "Specified tenant identifier '{tenant}' is neither a valid DNS name, nor a valid external domain."
                ),
            ));
        }
        Some(false) => {
            return Err(Refusal::new(
                90_002,
                format!(
                    "Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are \
                     signing into the correct cloud. Check with your subscription administrator, this may happen \
                     if there are no active subscriptions for the tenant."
                ),
            ));
        }
        Some(true) => {}
    }

    let form = Parameters::read(parts, body).await?;
    match form.get("grant_type") {
        Some("client_credentials") => {}
        Some(other) => {
            return Err(Refusal::new(
                70_003,
                format!("The app requested an unsupported grant type '{other}'."),
            ));
        }
        None => return Err(form.missing("grant_type")),
    }
    let client = form.get("client_id").ok_or_else(|| form.missing("client_id"))?;
    if !settings.knows_client(client) {
        return Err(Refusal::new(
            700_016,
            format!(
                "Application with identifier '{client}' was not found in the directory '{tenant}'. This can happen \
                 if the application has not been installed by the administrator of the tenant or consented to by \
                 any user in the tenant. You may have sent your authentication request to the wrong tenant."
            ),
        ));
    }
    let resource = resource(form.get("scope").ok_or_else(|| form.missing("scope"))?, world)?;
    let claims = form.get("claims").map(requested_claims).transpose()?;

    match (
        form.get("client_assertion_type"),
        form.get("client_assertion"),
        form.get("client_secret"),
    ) {
        (Some(ASSERTION_TYPE), Some(assertion), None) => {
            let endpoint = endpoint(parts, tenant);
            let expected = Expected {
                client,
                tenant,
                endpoint: &endpoint,
                settings: &settings,
            };
            assertion::verify(assertion, &expected, &mut world.registrations(), Timestamp::now())?;
        }
        (None, None, Some(secret)) if settings.secrets.iter().any(|it| it == secret) => {}
        (None, None, Some(_)) => {
            return Err(Refusal::new(
                7_000_215,
                format!(
                    "Invalid client secret provided. Ensure the secret being sent in the request is the client \
                     secret value, not the client secret ID, for a secret added to app '{client}'."
                ),
            ));
        }
        (Some(other), Some(_), None) => {
            return Err(Refusal::new(
                7_000_218,
                format!("The value '{other}' of 'client_assertion_type' is not supported."),
            ));
        }
        _ => {
            return Err(Refusal::new(
                7_000_218,
                "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.",
            ));
        }
    }

    let roles = match resource.as_str() {
        VAULT => Vec::new(),
        _ => settings.roles.clone(),
    };
    let grant = tokens::Grant {
        tenant: tenant.to_owned(),
        client: client.to_owned(),
        resource,
        roles,
        claims,
        lifetime_seconds: settings.token_lifetime_seconds,
    };
    let token = world.tokens().issue(grant, Timestamp::now());
    let mut answer = json!({
        "token_type": "Bearer",
        "expires_in": settings.token_lifetime_seconds,
        "ext_expires_in": settings.token_lifetime_seconds,
        "access_token": token,
    });
    if let Some(refresh_in) = settings.refresh_in_seconds {
        answer["refresh_in"] = refresh_in.into();
    }
    Ok(answer)
}

/// The URL of this endpoint as the client knows it, which is what `aud` has to name.
fn endpoint(parts: &Parts, tenant: &str) -> String {
    format!("{}/{tenant}/oauth2/v2.0/token", origin(&parts.headers))
}

/// The token of a request (RFC 6750 §2.1).
pub(super) fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What a library reads first of all (OpenID Connect Discovery 1.0 §4).
pub(super) fn discovery(tenant: &str, headers: &HeaderMap) -> Value {
    let root = format!("{}/{tenant}", origin(headers));
    json!({
        "token_endpoint": format!("{root}/oauth2/v2.0/token"),
        "authorization_endpoint": format!("{root}/oauth2/v2.0/authorize"),
        "issuer": format!("{root}/v2.0"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
        "response_types_supported": ["code"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "tenant_region_scope": "EU",
        "cloud_instance_name": "microsoftonline.com",
    })
}

/// Key Vault's resource.
pub(super) const VAULT: &str = "https://vault.azure.net";

/// The resource of the Outlook REST API.
pub(super) const OUTLOOK: &str = "https://outlook.office.com";

/// The roots of Graph in all clouds: <https://learn.microsoft.com/graph/deployments>.
const GRAPHS: [&str; 4] = [
    "https://graph.microsoft.com",
    "https://graph.microsoft.us",
    "https://dod-graph.microsoft.us",
    "https://microsoftgraph.chinacloudapi.cn",
];

/// The resource in `scope`, which is its root and `/.default`.
fn resource(scope: &str, world: &World) -> Result<String, Refusal> {
    let Some(resource) = scope.strip_suffix("/.default").filter(|_| !scope.contains(' ')) else {
        let (code, message) = match scope.contains(' ') {
            true => (
                70_011,
                "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid.",
            ),
            false => (
                1_002_012,
                "The provided value for scope is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI).",
            ),
        };
        return Err(Refusal::new(code, format!("{message} The scope is {scope}.")));
    };
    let resource = resource.trim_end_matches('/');
    if is_graph(resource, world) || resource == VAULT || resource == OUTLOOK {
        return Ok(resource.to_owned());
    }
    Err(Refusal::new(
        500_011,
        format!(
            "The resource principal named {resource} was not found in the tenant. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant."
        ),
    ))
}

/// Whether `resource` is a Graph: one of Microsoft's, or this cloud itself by any name it has.
pub(super) fn is_graph(resource: &str, world: &World) -> bool {
    GRAPHS.contains(&resource)
        || resource == world.url()
        || ["http://localhost:", "http://127.0.0.1:", "http://[::1]:"]
            .iter()
            .any(|own| {
                resource
                    .strip_prefix(own)
                    .is_some_and(|port| port == world.address().port().to_string())
            })
}

/// What `claims` asks for, as JSON: `{"access_token":{"xms_cc":{"values":["cp1"]}}}` and challenges.
fn requested_claims(text: &str) -> Result<Value, Refusal> {
    serde_json::from_str::<Value>(text)
        .ok()
        .filter(|it| it.is_object())
        .ok_or_else(|| {
            Refusal::new(
                1_400_000,
                "The value of the 'claims' parameter is not valid JSON.",
            )
        })
}

/// The form, each parameter once.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    async fn read(parts: &Parts, body: Bytes) -> Result<Parameters, Refusal> {
        let malformed = || {
            Refusal::new(
                900_144,
                "The request body must be application/x-www-form-urlencoded.",
            )
        };
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = Method::POST;
        *request.headers_mut() = parts.headers.clone();
        let Form(pairs) = Form::<Vec<(String, String)>>::from_request(request, &())
            .await
            .map_err(|_| malformed())?;
        // RFC 6749 §3.2: parameters must not be included more than once.
        for (index, (name, _)) in pairs.iter().enumerate() {
            if pairs[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(Refusal::new(
                    9_002_313,
                    format!("The parameter '{name}' is included more than once."),
                ));
            }
        }
        Ok(Parameters(pairs))
    }

    /// RFC 6749 §3.2: parameters without a value are treated as if they were omitted.
    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(it, value)| it == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    fn missing(&self, name: &str) -> Refusal {
        Refusal::new(
            900_144,
            format!("The request body must contain the following parameter: '{name}'."),
        )
    }
}

/// What every answer to one request has in common.
struct Answer {
    trace_id: String,
    correlation_id: String,
    echo: bool,
}

impl Answer {
    fn to(headers: &HeaderMap) -> Answer {
        let text = |name: &str| headers.get(name).and_then(|it| it.to_str().ok());
        let correlation_id = text("client-request-id")
            .filter(|it| is_guid(it))
            .map_or_else(guid, str::to_owned);
        let echo = text("return-client-request-id").is_some_and(|it| it.eq_ignore_ascii_case("true"));
        Answer {
            trace_id: guid(),
            correlation_id,
            echo,
        }
    }

    fn refuse(&self, refusal: &Refusal) -> Response {
        let (status, body) = self.error(refusal);
        self.json(status, body)
    }

    /// The seven fields: <https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow#error-response-1>.
    fn error(&self, refusal: &Refusal) -> (StatusCode, String) {
        let timestamp = Timestamp::now().strftime("%Y-%m-%d %H:%M:%SZ").to_string();
        let (error, status) = aadsts::kind(refusal.code);
        let body = json!({
            "error": error,
            "error_description": format!(
                "AADSTS{}: {} Trace ID: {} Correlation ID: {} Timestamp: {timestamp}",
                refusal.code, refusal.message, self.trace_id, self.correlation_id,
            ),
            "error_codes": [refusal.code],
            "timestamp": timestamp,
            "trace_id": self.trace_id,
            "correlation_id": self.correlation_id,
            "error_uri": format!("https://login.microsoftonline.com/error?code={}", refusal.code),
        });
        (
            StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST),
            body.to_string(),
        )
    }

    fn spoil(&self, spoilt: &fault::Spoilt) -> Response {
        let status = StatusCode::from_u16(spoilt.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let refusal = Refusal::new(
            spoilt
                .code
                .as_deref()
                .and_then(|it| it.trim_start_matches("AADSTS").parse().ok())
                .unwrap_or(90_033),
            spoilt
                .message
                .clone()
                .unwrap_or_else(|| "A transient error has occurred. Please try again.".into()),
        );
        let (_, body) = self.error(&refusal);
        let mut response = match spoilt.body {
            fault::Body::Json => self.json(status, body),
            fault::Body::Truncated => self.json(status, body[..body.len() / 2].to_owned()),
            fault::Body::Empty => self.json(status, String::new()),
            fault::Body::Html => {
                let mut response = self.json(status, super::html_error(spoilt.status));
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
                response
            }
        };
        if let Some(value) = spoilt
            .retry_after
            .as_deref()
            .and_then(|it| HeaderValue::from_str(it).ok())
        {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }

    fn json(&self, status: StatusCode, body: String) -> Response {
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        for (name, value) in [
            ("content-type", "application/json; charset=utf-8"),
            ("cache-control", "no-store, no-cache"),
            ("pragma", "no-cache"),
            ("x-ms-request-id", self.trace_id.as_str()),
        ] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        if let Some(value) = self
            .echo
            .then(|| HeaderValue::from_str(&self.correlation_id).ok())
            .flatten()
        {
            headers.insert("client-request-id", value);
        }
        response
    }
}
