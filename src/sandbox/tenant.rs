//! The pretended tenant: who may ask for tokens, which mailboxes there are, and what the application
//! may do with them. Pure; changed at run time by `PUT /sandbox/tenant`.

use serde::{Deserialize, Serialize};

/// Sends mail as any user, by application permission.
pub const MAIL_SEND: &str = "Mail.Send";
/// Creates, reads, changes and deletes mail.
pub const MAIL_READ_WRITE: &str = "Mail.ReadWrite";
/// Reads mail.
pub const MAIL_READ: &str = "Mail.Read";
/// Reads mail without bodies, attachments and extended properties.
pub const MAIL_READ_BASIC: &str = "Mail.ReadBasic.All";

/// What the tenant's administrator has set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tenant {
    /// The tenant's GUID and verified domains. Empty: every well-formed name is a tenant.
    pub names: Vec<String>,
    /// The application ids that are registered. Empty: every GUID is.
    pub clients: Vec<String>,
    /// Client secrets that are accepted, beside certificates.
    pub secrets: Vec<String>,
    /// Application permissions with admin consent: they hold for every mailbox and are in the token.
    pub roles: Vec<String>,
    /// RBAC for Applications: they hold for some mailboxes and are not in the token.
    pub assignments: Vec<Assignment>,
    /// An application access policy with `RestrictAccess`: the only mailboxes the application may
    /// open by a consented permission. Absent: no such policy.
    pub access_policy: Option<Vec<String>>,
    /// Whether every address is a mailbox. If not, only `mailboxes` are.
    pub any_mailbox: bool,
    /// Mailboxes of which more is known than their address.
    pub mailboxes: Vec<Mailbox>,
    /// Audiences accepted in a client assertion beside the URL of the token endpoint itself.
    pub audiences: Vec<String>,
    /// Whether a certificate that comes in the assertion (`x5c`) is registered on first sight.
    pub trust_presented_certificates: bool,
    /// Whether a client assertion may be used once only.
    pub refuse_replayed_assertions: bool,
    /// Tolerance for the times in an assertion.
    pub clock_skew_seconds: i64,
    /// `expires_in` of access tokens.
    pub token_lifetime_seconds: i64,
    /// `refresh_in` of access tokens, where it is to be sent.
    pub refresh_in_seconds: Option<i64>,
    /// Other platforms' identities that may stand for the application.
    pub federated_credentials: Vec<FederatedCredential>,
    /// Client ids of the machine's managed identities, its own first. Empty: any.
    pub managed_identities: Vec<String>,
    /// What a client of App Service's endpoint has to say in `X-IDENTITY-HEADER`.
    pub identity_header: String,
    /// What the application may do in the vault.
    pub vault_permissions: Vec<String>,
    /// The resource in the vault's challenge. Absent: the address it is reached by, since a client
    /// must not take its token elsewhere.
    pub vault_resource: Option<String>,
    /// The authority in the vault's challenge. Absent: this one.
    pub vault_authority: Option<String>,
    /// Whether the Outlook REST API v2.0 is still served. Exchange Online answers 410 since 2024.
    pub outlook_rest: bool,
}

/// A federated identity credential of the application.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FederatedCredential {
    /// Who issues the tokens.
    pub issuer: String,
    /// Whom they are for.
    pub subject: String,
    /// Usually [`TOKEN_EXCHANGE`].
    #[serde(default = "token_exchange")]
    pub audience: String,
    /// The issuer's key, PEM.
    pub public_key: String,
}

/// The audience of tokens that are made for Entra.
pub const TOKEN_EXCHANGE: &str = "api://AzureADTokenExchange";

fn token_exchange() -> String {
    TOKEN_EXCHANGE.into()
}

/// A role assignment to the application, scoped to some mailboxes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// [`MAIL_SEND`], [`MAIL_READ_WRITE`]…
    pub role: String,
    /// The mailboxes in scope.
    pub mailboxes: Vec<String>,
}

/// A mailbox of which more is known than its address.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mailbox {
    /// The user principal name and primary address.
    pub address: String,
    /// The user's object id, by which it can be named in a URL as well.
    pub id: Option<String>,
    /// Further addresses of the same mailbox.
    pub aliases: Vec<String>,
    /// Addresses this mailbox has Send As or Send on Behalf for. `*` stands for all.
    pub send_as: Vec<String>,
    /// Not licensed, soft-deleted or on-premises: no mailbox behind the user.
    pub inactive: bool,
}

impl Default for Tenant {
    fn default() -> Self {
        Tenant {
            names: Vec::new(),
            clients: Vec::new(),
            secrets: Vec::new(),
            roles: vec![MAIL_SEND.into(), MAIL_READ_WRITE.into()],
            assignments: Vec::new(),
            access_policy: None,
            any_mailbox: true,
            mailboxes: Vec::new(),
            audiences: Vec::new(),
            trust_presented_certificates: false,
            refuse_replayed_assertions: false,
            clock_skew_seconds: 300,
            token_lifetime_seconds: 3599,
            refresh_in_seconds: None,
            federated_credentials: Vec::new(),
            managed_identities: Vec::new(),
            identity_header: "sandbox-identity-header".into(),
            vault_permissions: ["secrets/get", "keys/get", "keys/sign", "certificates/get"]
                .map(String::from)
                .into(),
            vault_resource: None,
            vault_authority: None,
            outlook_rest: false,
        }
    }
}

/// Why there is no mailbox to work with.
pub(super) enum NoMailbox {
    /// No such user.
    Unknown,
    /// The user has no mailbox that Graph can reach.
    Inactive,
}

/// What stands in the way of using a mailbox.
pub(super) enum Denied {
    /// Neither consent nor role assignment covers it.
    NotGranted,
    /// The application access policy excludes it.
    AccessPolicy,
}

impl Tenant {
    /// The tenant as named in a URL: GUID or domain. `None` for a name that is neither.
    pub(super) fn knows_tenant(&self, name: &str) -> Option<bool> {
        if !is_guid(name) && !is_domain(name) {
            return None;
        }
        Some(self.names.is_empty() || self.names.iter().any(|it| it.eq_ignore_ascii_case(name)))
    }

    pub(super) fn knows_client(&self, id: &str) -> bool {
        is_guid(id) && (self.clients.is_empty() || self.clients.iter().any(|it| it.eq_ignore_ascii_case(id)))
    }

    /// The mailbox of the user in a URL, named by user principal name or object id. An alias is not
    /// a name a user can be found by.
    pub(super) fn mailbox(&self, user: &str) -> Result<Mailbox, NoMailbox> {
        let known = self.mailboxes.iter().find(|it| {
            it.address.eq_ignore_ascii_case(user)
                || it.id.as_ref().is_some_and(|id| id.eq_ignore_ascii_case(user))
        });
        match known {
            Some(mailbox) if mailbox.inactive => Err(NoMailbox::Inactive),
            Some(mailbox) => Ok(mailbox.clone()),
            None if self.any_mailbox && is_smtp_address(user) => Ok(Mailbox {
                address: user.to_owned(),
                ..Mailbox::default()
            }),
            None => Err(NoMailbox::Unknown),
        }
    }

    /// Whether an application with `roles` in its token may use `role` on `mailbox`. Grants are
    /// additive: what Exchange assigns for some mailboxes adds to what Entra consents to for all.
    pub(super) fn allows(&self, roles: &[String], role: &str, mailbox: &str) -> Result<(), Denied> {
        let names = |list: &[String]| list.iter().any(|it| it.eq_ignore_ascii_case(mailbox));
        if self
            .assignments
            .iter()
            .any(|it| it.role == role && names(&it.mailboxes))
        {
            return Ok(());
        }
        if !roles.iter().any(|it| it == role) {
            return Err(Denied::NotGranted);
        }
        match &self.access_policy {
            Some(members) if !names(members) => Err(Denied::AccessPolicy),
            _ => Ok(()),
        }
    }
}

impl Mailbox {
    /// Whether mail of this mailbox may say it is from `address`.
    pub(super) fn may_send_as(&self, address: &str) -> bool {
        self.address.eq_ignore_ascii_case(address)
            || self.aliases.iter().any(|it| it.eq_ignore_ascii_case(address))
            || self
                .send_as
                .iter()
                .any(|it| it == "*" || it.eq_ignore_ascii_case(address))
    }
}

pub(super) fn is_guid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.len() == 5
        && groups.iter().zip([8, 4, 4, 4, 12]).all(|(group, length)| {
            group.len() == length && group.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

fn is_domain(text: &str) -> bool {
    text.len() <= 253 && text.contains('.') && text.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= 63
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .chars()
            .all(|it| it.is_alphanumeric() || it == '-' || it == '_')
}

/// Whether this is an address Exchange could make a recipient of: `local@domain`, with the syntax of
/// RFC 5321 §4.1.2 and RFC 6531, and no longer than RFC 5321 §4.5.3.1 allows.
pub(super) fn is_smtp_address(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else {
        return false;
    };
    if local.is_empty() || local.len() > 64 || text.len() > 320 {
        return false;
    }
    let local_ok = match local.strip_prefix('"').and_then(|it| it.strip_suffix('"')) {
        Some(quoted) => {
            let mut escaped = false;
            let clean = quoted.chars().all(|it| {
                let fine = !it.is_control() && (escaped || it != '"');
                escaped = !escaped && it == '\\';
                fine
            });
            clean && !escaped
        }
        None => local
            .split('.')
            .all(|atom| !atom.is_empty() && atom.chars().all(is_atext)),
    };
    let domain_ok = match domain.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
        Some(literal) => {
            !literal.is_empty()
                && literal
                    .bytes()
                    .all(|it| it.is_ascii_alphanumeric() || b".:".contains(&it))
        }
        None => domain.len() <= 255 && domain.split('.').all(is_label),
    };
    local_ok && domain_ok
}

/// RFC 5322 §3.2.3, and RFC 6532 §3.2 for what is not ASCII.
fn is_atext(character: char) -> bool {
    character.is_ascii_alphanumeric()
        || "!#$%&'*+-/=?^_`{|}~".contains(character)
        || (!character.is_ascii() && !character.is_control() && !character.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in [
            "a@b.example",
            "a.b+c@b-c.example",
            "\"a b\"@c.example",
            "\"a\\\"b\"@c.example",
            "root@localhost",
            "o'neil@c.example",
            "jörg@bücher.example",
            "a@[192.0.2.1]",
            "$x@y.example",
        ] {
            assert!(is_smtp_address(good), "{good}");
        }
        for bad in [
            "",
            "a",
            "@b.example",
            "a@",
            "a@b..example",
            "a@-b.example",
            ".a@b.example",
            "a.@b.example",
            "a..b@c.example",
            "a b@c.example",
            "a@b c.example",
            "a@b.example,c@d.example",
            "<a@b.example>",
            "a\r\n@b.example",
            "a@b.example\r\nBcc: x@y.example",
            "\"a\"b\"@c.example",
            "a@b@c.example",
        ] {
            assert!(!is_smtp_address(bad), "{bad}");
        }
    }

    #[test]
    fn grants_add_up_and_the_access_policy_takes_away() {
        let mut tenant = Tenant::default();
        let consented = vec![MAIL_SEND.to_owned()];
        assert!(tenant.allows(&consented, MAIL_SEND, "a@x.example").is_ok());
        assert!(matches!(
            tenant.allows(&[], MAIL_SEND, "a@x.example"),
            Err(Denied::NotGranted)
        ));
        assert!(matches!(
            tenant.allows(&consented, MAIL_READ_WRITE, "a@x.example"),
            Err(Denied::NotGranted)
        ));

        tenant.assignments = vec![Assignment {
            role: MAIL_SEND.into(),
            mailboxes: vec!["A@x.example".into()],
        }];
        assert!(tenant.allows(&[], MAIL_SEND, "a@x.example").is_ok());
        assert!(tenant.allows(&[], MAIL_SEND, "b@x.example").is_err());

        tenant.access_policy = Some(vec!["c@x.example".into()]);
        assert!(matches!(
            tenant.allows(&consented, MAIL_SEND, "b@x.example"),
            Err(Denied::AccessPolicy)
        ));
        assert!(tenant.allows(&consented, MAIL_SEND, "C@x.example").is_ok());
    }

    #[test]
    fn a_user_is_found_by_principal_name_or_id_but_not_by_alias() {
        let tenant = Tenant {
            any_mailbox: false,
            mailboxes: vec![
                Mailbox {
                    address: "svc@x.example".into(),
                    id: Some("11111111-2222-3333-4444-555555555555".into()),
                    aliases: vec!["alias@x.example".into()],
                    ..Mailbox::default()
                },
                Mailbox {
                    address: "gone@x.example".into(),
                    inactive: true,
                    ..Mailbox::default()
                },
            ],
            ..Tenant::default()
        };
        assert!(tenant.mailbox("SVC@x.example").is_ok());
        assert!(tenant.mailbox("11111111-2222-3333-4444-555555555555").is_ok());
        assert!(matches!(
            tenant.mailbox("alias@x.example"),
            Err(NoMailbox::Unknown)
        ));
        assert!(matches!(
            tenant.mailbox("gone@x.example"),
            Err(NoMailbox::Inactive)
        ));
    }
}
