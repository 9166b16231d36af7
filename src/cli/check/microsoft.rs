//! What only Microsoft can tell: the way there, the token, and what it permits. Each line rests on
//! those before it, and is skipped where they fail.

use std::sync::Arc;
use std::time::Duration;

use super::super::Failure;
use super::super::entra::verifies;
use super::credential::check_name;
use super::mailbox::{self, Reading};
use super::network::{self, Place, Reached};
use crate::address::Address;
use crate::config::{ApplicationCredential, Config, IdentityHost, ManagedIdentity, Tenant, VaultIdentity};
use crate::diagnosis::{Diagnosis, Health};
use crate::graph::client::Graph;
use crate::identity::claims::TokenClaims;
use crate::identity::credential::read_certificate;
use crate::identity::expiry::RENEW_APPLICATION;
use crate::identity::{Examined, IdentityError, Tokens};
use crate::metrics::Metrics;

/// How long a request to Graph may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the names and tokens still asked for may take when all has been said.
const LINGER: Duration = Duration::from_millis(100);

const MAIL_SEND: &str = "Mail.Send";
const MAIL_READ_WRITE: &str = "Mail.ReadWrite";
const MAIL_READ_BASIC: &str = "Mail.ReadBasic.All";

/// All of it.
pub(super) fn lines(
    config: &Config,
    only: &[String],
    send_to: Option<&Address>,
) -> Result<Vec<Diagnosis>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format_args!("cannot start: {error}")))?;
    let lines = runtime.block_on(ask(config, only, send_to));
    // A name that is still being looked up is waited for by nobody.
    runtime.shutdown_timeout(LINGER);
    Ok(lines)
}

async fn ask(config: &Config, only: &[String], send_to: Option<&Address>) -> Vec<Diagnosis> {
    let tenant = &config.tenant;
    let (mut lines, reached) = network(tenant).await;
    let is_reached = |name: &str| reached.iter().all(|it| it.name != name || it.ok);
    let mailboxes = mailbox::chosen(config, only);

    let needed = ["authority", "vault", "metadata"];
    let missing = needed.into_iter().find(|it| !is_reached(it));
    let (tokens, claims) = match missing {
        Some(name) => {
            lines.push(Diagnosis::skip(
                "token",
                format!("rests on the connection to the {name}"),
            ));
            (None, None)
        }
        None => match Tokens::new(tenant, Arc::new(Metrics::new())) {
            Ok(tokens) => {
                let examined = tokens.examine().await;
                let claims = report_tokens(tenant, &examined, &mut lines);
                let granted = examined.iter().any(|it| it.result.is_ok());
                (granted.then_some(tokens), claims)
            }
            Err(error) => {
                lines.push(unprepared(&error));
                (None, None)
            }
        },
    };
    let Some(tokens) = tokens else {
        lines.push(Diagnosis::skip("permissions", "rests on the token"));
        lines.extend(
            mailboxes
                .iter()
                .map(|it| Diagnosis::skip(it.check(), "rests on the token")),
        );
        return lines;
    };
    let reading = if tenant.large_messages {
        Reading::Drafts
    } else if verifies(config) {
        Reading::SentItems
    } else {
        Reading::None
    };
    let tenant_wide = permissions(tenant, reading, claims.as_ref(), &mut lines);
    if !is_reached("graph") {
        let skip = |it: &mailbox::Chosen| Diagnosis::skip(it.check(), "rests on the connection to Graph");
        lines.extend(mailboxes.iter().map(skip));
        return lines;
    }
    match Graph::new(tenant, REQUEST_TIMEOUT, tokens, Arc::new(Metrics::new())) {
        Ok(graph) => {
            lines.extend(mailbox::lines(tenant, &graph, &mailboxes, reading, tenant_wide, send_to).await)
        }
        Err(error) => lines.push(Diagnosis::fail("graph", error.to_string(), "correct [tenant]")),
    }
    lines
}

/// All places at once.
async fn network(tenant: &Tenant) -> (Vec<Diagnosis>, Vec<Reached>) {
    let mut tasks = Vec::new();
    for place in places(tenant) {
        let tenant = tenant.clone();
        tasks.push(tokio::spawn(async move { network::reach(&tenant, place).await }));
    }
    let mut reached = Vec::new();
    for task in tasks {
        reached.extend(task.await.ok());
    }
    let mut lines: Vec<Diagnosis> = reached.iter().flat_map(|it| it.lines.clone()).collect();
    if let Some(authority) = reached.iter().find(|it| it.name == "authority" && it.ok) {
        lines.push(network::clock(authority.clock_ahead));
    } else if reached.iter().any(|it| it.name == "authority") {
        lines.push(Diagnosis::skip(
            "clock",
            "rests on the connection to the authority",
        ));
    }
    (lines, reached)
}

/// What this tenant's credentials need, and Graph.
fn places(tenant: &Tenant) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    let mut add = |name, root: &str, asked| {
        let root = root.trim_end_matches('/').to_owned();
        if !places.iter().any(|it: &Place| it.name == name && it.root == root) {
            places.push(Place { name, root, asked });
        }
    };
    let machine = |identity: &ManagedIdentity| match &identity.host {
        IdentityHost::VirtualMachine { root } => root.clone(),
        IdentityHost::AppService { endpoint, .. } | IdentityHost::Arc { endpoint, .. } => endpoint.clone(),
    };
    for credential in std::iter::once(&tenant.credential).chain(&tenant.next_credential) {
        if !matches!(credential, ApplicationCredential::ManagedIdentity(_)) {
            add("authority", &tenant.authority, true);
        }
        let vault = match credential {
            ApplicationCredential::Certificate {
                vault_password: Some(it),
                ..
            } => Some((&it.secret, &it.identity)),
            ApplicationCredential::VaultCertificate(it) => Some((&it.certificate, &it.identity)),
            _ => None,
        };
        if let Some((object, identity)) = vault {
            add("vault", &object.vault, true);
            if let VaultIdentity::Managed(identity) = identity {
                add("metadata", &machine(identity), false);
            }
        }
        if let ApplicationCredential::ManagedIdentity(identity) = credential {
            add("metadata", &machine(identity), false);
        }
    }
    add("graph", &tenant.graph, true);
    places
}

fn unprepared(error: &IdentityError) -> Diagnosis {
    match error {
        IdentityError::Credential(_) => Diagnosis::skip("token", "rests on the credential"),
        error => {
            let text = error.to_string();
            let (detail, fix) = text.split_once("; ").unwrap_or((&text, "correct [tenant]"));
            Diagnosis::fail("token", detail, fix)
        }
    }
}

/// One line for each credential. Gives what the token says that the gateway would use.
fn report_tokens(tenant: &Tenant, examined: &[Examined], lines: &mut Vec<Diagnosis>) -> Option<TokenClaims> {
    let mut claims = None;
    for it in examined {
        let check = match it.credential {
            "next" => "next token",
            _ => "token",
        };
        match &it.result {
            Ok(token) => {
                lines.push(Diagnosis::ok(check, "given; the credential is accepted"));
                claims = claims.or_else(|| token.claims());
            }
            // The next one is there to be registered; until then the gateway uses the other.
            Err(error) if error.credential && it.credential != "next" => {
                lines.push(Diagnosis::of_reason(Health::Fail, check, &error.why));
            }
            Err(error) => lines.push(Diagnosis::of_reason(Health::Warn, check, &error.why)),
        }
        let credential = match it.credential {
            "next" => tenant.next_credential.as_ref(),
            _ => Some(&tenant.credential),
        };
        // The end of a certificate that could be seen here has been told already.
        let unseen = match credential {
            Some(ApplicationCredential::VaultCertificate(_)) => true,
            Some(ApplicationCredential::Certificate {
                files,
                vault_password: Some(_),
            }) => read_certificate(&files.certificate, None).is_err(),
            _ => false,
        };
        if let (Some(end), true) = (it.expires, unseen) {
            let check = check_name(it.credential);
            lines.push(Diagnosis::expiry(
                check,
                end,
                RENEW_APPLICATION,
                jiff::Timestamp::now(),
            ));
        }
    }
    claims
}

/// What the token says about permissions. Whether Mail.Send is granted for the whole tenant.
fn permissions(
    tenant: &Tenant,
    reading: Reading,
    claims: Option<&TokenClaims>,
    lines: &mut Vec<Diagnosis>,
) -> bool {
    let Some(claims) = claims else {
        lines.push(Diagnosis::skip(
            "permissions",
            "this token cannot be read; a message will tell",
        ));
        return false;
    };
    let own = !matches!(tenant.credential, ApplicationCredential::ManagedIdentity(_));
    let application = claims.application.as_deref().unwrap_or_default();
    if let Some(scopes) = &claims.delegated {
        lines.push(Diagnosis::fail(
            "permissions",
            format!("the token is a user's, not the application's (scp: {scopes})"),
            "grant Mail.Send as an Application permission, not as a Delegated one",
        ));
        return false;
    }
    if own && !application.is_empty() && !application.eq_ignore_ascii_case(&tenant.client_id) {
        lines.push(Diagnosis::warn(
            "permissions",
            format!("the token is for the application {application}"),
            "check tenant.client_id",
        ));
    }
    let has = |role: &str| claims.roles.iter().any(|it| it == role);
    let wanted = match reading {
        Reading::None => &[MAIL_SEND][..],
        Reading::Drafts => &[MAIL_SEND, MAIL_READ_WRITE][..],
        // The least that does.
        Reading::SentItems => &[MAIL_SEND, MAIL_READ_BASIC][..],
    };
    for role in wanted {
        lines.push(if has(role) {
            let may = match *role {
                MAIL_SEND => "send as",
                MAIL_READ_BASIC => "read the headers of all mail of",
                _ => "read, change and delete all mail of",
            };
            Diagnosis::warn(
                "permissions",
                format!(
                    "{role} is granted for the whole tenant: the application may {may} every mailbox, \
                     unless an application access policy restricts it"
                ),
                "graphpost entra script: grants it for the mailboxes of the sender table only, and removes this grant",
            )
        } else {
            Diagnosis::skip(
                "permissions",
                format!(
                    "{role} is not in the token: unknown until tried; RBAC for Applications, which scopes it to \
                     mailboxes, does not show there"
                ),
            )
        });
    }
    let other: Vec<&str> = claims
        .roles
        .iter()
        .map(String::as_str)
        .filter(|it| !wanted.contains(it))
        .collect();
    if !other.is_empty() {
        lines.push(Diagnosis::warn(
            "permissions",
            format!(
                "the application has more than this gateway needs: {}",
                other.join(", ")
            ),
            "remove what nothing else needs (App registrations > the application > API permissions)",
        ));
    }
    has(MAIL_SEND)
}
