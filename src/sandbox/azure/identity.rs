//! The endpoints that give a managed identity its tokens.
//!
//! <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>,
//! <https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference>,
//! <https://learn.microsoft.com/azure/azure-arc/servers/managed-identity-authentication>

use std::path::{Path, PathBuf};

use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Answer, parameter};
use crate::sandbox::entra::tokens::Grant;
use crate::sandbox::entra::{VAULT, is_graph};
use crate::sandbox::tenant::is_guid;
use crate::sandbox::{World, guid, random};

/// The files by which clients of Azure Arc show that they are on the machine.
#[derive(Default)]
pub(in crate::sandbox) struct Agent {
    /// Where the files go; without it there is no Arc.
    directory: Option<PathBuf>,
    /// What the challenge says instead of the file's path.
    realm: Option<String>,
    /// The content of the file of the last challenge. Each serves once.
    key: Option<String>,
}

impl Agent {
    pub(in crate::sandbox) fn install(&mut self, directory: PathBuf, realm: Option<String>) {
        *self = Agent {
            directory: Some(directory),
            realm,
            key: None,
        };
    }
}

/// `/metadata/identity/oauth2/token`: a virtual machine's, or with its api-version Azure Arc's.
pub(super) async fn machine(world: &World, parts: &Parts) -> Answer {
    let is_true = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|it| it.to_str().ok())
            .is_some_and(|it| it.eq_ignore_ascii_case("true"))
    };
    // So that no web page and no forwarded request gets a token.
    if !is_true("metadata") {
        return refuse("bad_request_102", "Required metadata header not specified");
    }
    if parts.headers.contains_key("x-forwarded-for") {
        return refuse(
            "bad_request_102",
            "Requests with the header X-Forwarded-For are not served",
        );
    }
    match parameter(parts, "api-version").as_deref() {
        Some("2018-02-01") => {
            let mut answer = token(world, parts);
            if answer.status.is_success() {
                // Here every value is a string.
                let expires_in = world.tenant().token_lifetime_seconds;
                answer.body["expires_in"] = expires_in.to_string().into();
                answer.body["ext_expires_in"] = expires_in.to_string().into();
                answer.body["not_before"] = Timestamp::now().as_second().to_string().into();
            }
            answer
        }
        Some("2019-11-01" | "2020-06-01") => arc(world, parts).await,
        Some(_) => refuse("bad_request_100", "The requested api-version is not supported"),
        None => refuse(
            "invalid_request",
            "Required query variable 'api-version' is missing",
        ),
    }
}

/// `$IDENTITY_ENDPOINT` of App Service and Container Apps.
pub(super) fn app_service(world: &World, parts: &Parts) -> Answer {
    let given = parts
        .headers
        .get("x-identity-header")
        .and_then(|it| it.to_str().ok());
    if given != Some(world.tenant().identity_header.as_str()) {
        let body = json!({"statusCode": 401, "message": "The identity header is missing or wrong."});
        return Answer::new(StatusCode::UNAUTHORIZED, body);
    }
    if parameter(parts, "api-version").as_deref() != Some("2019-08-01") {
        return refuse("invalid_request", "The api-version is missing or not supported");
    }
    token(world, parts)
}

async fn arc(world: &World, parts: &Parts) -> Answer {
    if ["client_id", "object_id", "mi_res_id", "msi_res_id"]
        .iter()
        .any(|it| parameter(parts, it).is_some())
    {
        return refuse(
            "invalid_request",
            "Only the system-assigned identity is supported",
        );
    }
    let directory = world.agent().directory.clone();
    let Some(directory) = directory else {
        return refuse("bad_request_100", "This machine is not connected to Azure Arc");
    };
    let given = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|it| it.to_str().ok());
    let Some(key) = given.and_then(|it| it.strip_prefix("Basic ")) else {
        return challenge(world, &directory).await;
    };
    let expected = world.agent().key.take();
    if expected.as_deref() != Some(key) {
        let body = json!({"error": "unauthorized", "error_description": "The challenge key is wrong"});
        return Answer::new(StatusCode::UNAUTHORIZED, body);
    }
    token(world, parts)
}

async fn challenge(world: &World, directory: &Path) -> Answer {
    let key = URL_SAFE_NO_PAD.encode(random::<64>());
    let path = directory.join(format!("{}.key", guid()));
    if tokio::fs::write(&path, &key).await.is_err() {
        let body = json!({"error": "internal", "error_description": "The key file could not be written"});
        return Answer::new(StatusCode::INTERNAL_SERVER_ERROR, body);
    }
    let mut agent = world.agent();
    agent.key = Some(key);
    let realm = agent.realm.clone().unwrap_or_else(|| path.display().to_string());
    let body = json!({"error": "unauthorized", "error_description": "Read the key file"});
    Answer::new(StatusCode::UNAUTHORIZED, body).with(header::WWW_AUTHENTICATE, format!("Basic realm={realm}"))
}

/// A token for the identity that is asked for, or the machine's own.
fn token(world: &World, parts: &Parts) -> Answer {
    let Some(resource) = parameter(parts, "resource") else {
        return refuse("invalid_request", "Required query variable 'resource' is missing");
    };
    let resource = resource.trim_end_matches('/').to_owned();
    if !is_graph(&resource, world) && resource != VAULT {
        return refuse(
            "invalid_resource",
            "AADSTS500011: The resource principal was not found in the tenant.",
        );
    }
    let settings = world.tenant().clone();
    let known = &settings.managed_identities;
    let client = match (parameter(parts, "client_id"), known.first()) {
        (Some(id), None) if is_guid(&id) => id,
        (Some(id), _) if known.contains(&id) => id,
        (Some(_), _) => return refuse("invalid_request", "Identity not found"),
        (None, Some(own)) => own.clone(),
        (None, None) => "00000000-0000-4000-8000-000000000001".to_owned(),
    };
    let lifetime = settings.token_lifetime_seconds;
    let roles = if resource == VAULT {
        Vec::new()
    } else {
        settings.roles.clone()
    };
    let grant = Grant {
        tenant: settings
            .names
            .first()
            .cloned()
            .unwrap_or_else(|| "contoso.onmicrosoft.com".into()),
        client: client.clone(),
        resource: resource.clone(),
        roles,
        claims: None,
        lifetime_seconds: lifetime,
    };
    let now = Timestamp::now();
    let token = world.tokens().issue(grant, now);
    Answer::ok(json!({
        "access_token": token,
        "client_id": client,
        "expires_on": (now.as_second() + lifetime).to_string(),
        "resource": resource,
        "token_type": "Bearer",
    }))
}

fn refuse(error: &str, description: &str) -> Answer {
    let body: Value = json!({"error": error, "error_description": description});
    Answer::new(StatusCode::BAD_REQUEST, body)
}
