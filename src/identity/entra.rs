//! Entra ID's token endpoint: the client credentials grant
//! (<https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::cache::Grant;
use super::certificate::Certificate;
use super::proof::Proof;
use super::refusal::{self, TokenAnswer};
use super::token::TokenError;
use super::{IdentityError, guid, https};
use crate::config::{ApplicationCredential, Tenant};
use crate::metrics::Metrics;

/// How long a token request may take in all.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// As much of an answer as is read. A token has one or two thousand octets, some have ten.
pub(super) const MAX_ANSWER_OCTETS: usize = 64 * 1024;

/// Where no OAuth answer comes.
const ADVICE: &str = "check tenant.authority and tenant.id, and whether a proxy answers in its place";

/// An application, as Entra ID knows it, and what it asks for.
#[derive(Debug)]
pub(super) struct Entra {
    client: reqwest::Client,
    /// The token endpoint, which is also the assertion's audience.
    endpoint: String,
    client_id: String,
    scope: String,
    proof: Proof,
    /// Whether tokens may be revoked at any time, and last longer for that.
    continuous_access_evaluation: bool,
}

impl Entra {
    /// Prepares to ask for tokens for a resource. Blocks, to open what is in files.
    pub(super) fn new(
        tenant: &Tenant,
        credential: &ApplicationCredential,
        resource: &str,
        metrics: &Arc<Metrics>,
    ) -> Result<Entra, IdentityError> {
        let client = https::client(tenant, &tenant.authority)
            .map_err(IdentityError::Https)?
            .timeout(REQUEST_TIMEOUT)
            // One request an hour: an idle connection would only be found dead.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| IdentityError::Https(https::HttpsError::Tls(error)))?;
        Ok(Entra {
            client,
            endpoint: format!("{}/{}/oauth2/v2.0/token", tenant.authority, tenant.id),
            client_id: tenant.client_id.clone(),
            scope: format!("{resource}/.default"),
            proof: Proof::open(tenant, credential, metrics)?,
            continuous_access_evaluation: tenant.continuous_access_evaluation,
        })
    }

    /// The application's certificate, where there is one and it has been opened.
    pub(super) fn certificate(&self) -> Option<Certificate> {
        self.proof.certificate()
    }

    /// Asks for a token. `challenge` are claims that a resource demands of it.
    pub(super) async fn request(&self, challenge: Option<&str>) -> Result<Grant, TokenError> {
        let mut fields = vec![
            ("client_id", self.client_id.clone()),
            ("scope", self.scope.clone()),
            ("grant_type", "client_credentials".to_owned()),
        ];
        fields.extend(self.proof.fields(&self.endpoint, &self.client_id).await?);
        if let Some(claims) = claims(self.continuous_access_evaluation, challenge) {
            fields.push(("claims", claims));
        }
        let sent = self
            .client
            .post(&self.endpoint)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header("client-request-id", guid())
            .header("return-client-request-id", "true")
            .body(form(&fields))
            .send()
            .await;
        let mut result = match sent {
            Ok(response) => read("Entra ID", ADVICE, response).await,
            Err(error) => Err(TokenError::passing(format!(
                "Entra ID cannot be reached: {}",
                https::chain(&error)
            ))),
        };
        if let Err(error) = &mut result {
            let secrets = fields
                .iter()
                .filter(|(name, _)| matches!(*name, "client_secret" | "client_assertion"));
            for (_, secret) in secrets {
                refusal::conceal(&mut error.why, secret);
                let encoded = form(&[("", secret.clone())]);
                refusal::conceal(&mut error.why, encoded.trim_start_matches('='));
            }
        }
        if result.as_ref().is_err_and(|it| it.credential) {
            // What is in a vault may have been replaced there.
            self.proof.forget();
        }
        result
    }
}

/// Reads the answer of a token endpoint.
pub(super) async fn read(
    who: &'static str,
    advice: &'static str,
    mut response: reqwest::Response,
) -> Result<Grant, TokenError> {
    let now = Timestamp::now();
    let status = response.status().as_u16();
    let retry_after = https::retry_after(response.headers(), now);
    let clock_ahead = response
        .headers()
        .get(reqwest::header::DATE)
        .and_then(|it| https::http_date(it.to_str().ok()?))
        .map(|it| now.as_second() - it.as_second());
    match https::read_at_most(&mut response, MAX_ANSWER_OCTETS).await {
        Ok(body) => refusal::read(&TokenAnswer {
            who,
            advice,
            now,
            status,
            body: &body,
            retry_after,
            clock_ahead,
        }),
        Err(error) => Err(TokenError {
            retry_after,
            ..TokenError::passing(format!("the answer of {who} broke off: {}", https::chain(&error)))
        }),
    }
}

/// `application/x-www-form-urlencoded`.
fn form(fields: &[(&str, String)]) -> String {
    // The query of a URL has the same encoding, and the library for URLs is there already.
    let mut url = Url::parse("http://localhost/").expect("a URL");
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

/// The `claims` of a request: that we understand revocations
/// (<https://learn.microsoft.com/entra/identity-platform/app-resilience-continuous-access-evaluation>),
/// and what the resource demands.
fn claims(continuous_access_evaluation: bool, challenge: Option<&str>) -> Option<String> {
    let mut claims = json!({});
    if let Some(challenge) = challenge.and_then(|it| serde_json::from_str::<Value>(it).ok())
        && challenge.is_object()
    {
        claims = challenge;
    }
    if continuous_access_evaluation {
        if !claims["access_token"].is_object() {
            claims["access_token"] = json!({});
        }
        claims["access_token"]["xms_cc"] = json!({"values": ["cp1"]});
    }
    (claims != json!({})).then(|| claims.to_string())
}

#[cfg(test)]
mod tests {
    use super::claims;

    #[test]
    fn claims_are_those_of_the_challenge_and_ours() {
        let challenge = r#"{"access_token":{"nbf":{"essential":true,"value":"1"}}}"#;
        let ours = r#"{"access_token":{"xms_cc":{"values":["cp1"]}}}"#;
        for (cae, given, want) in [
            (false, None, None),
            (true, None, Some(ours)),
            (false, Some(challenge), Some(challenge)),
            (
                true,
                Some(challenge),
                Some(
                    r#"{"access_token":{"nbf":{"essential":true,"value":"1"},"xms_cc":{"values":["cp1"]}}}"#,
                ),
            ),
            (true, Some("nonsense"), Some(ours)),
            (true, Some("[1]"), Some(ours)),
            (true, Some(r#"{"access_token":7}"#), Some(ours)),
            (false, Some("nonsense"), None),
        ] {
            assert_eq!(claims(cae, given).as_deref(), want, "{given:?}");
        }
    }
}
