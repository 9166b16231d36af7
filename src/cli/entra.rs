//! `graphpost entra script`: a script that registers the application, uploads this certificate, and
//! permits it to send as the mailboxes of the sender table, and no others.
//!
//! The text is made by pure functions, from the configuration and the certificate. Everything that
//! comes from them stands in a quoted literal of the script's language, never in code.

mod azure_cli;
mod powershell;

use std::fmt;
use std::io::{self, Write as _};

use clap::{Args, Subcommand, ValueEnum};

use super::{ConfigFile, Failure};
use crate::config::{Config, UnknownPolicy};
use crate::identity::certificate::Certificate;
use crate::identity::credential::read_certificate;

pub(super) use powershell::quoted as powershell_quoted;

/// Microsoft Graph's application id, the same in every tenant.
const GRAPH_APP_ID: &str = "00000003-0000-0000-c000-000000000000";

/// A permission of Graph, and its role in Exchange's RBAC for Applications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Permission {
    /// Its name in Entra ID.
    name: &'static str,
    /// The id of the app role in Graph's service principal.
    app_role: &'static str,
    /// Exchange's role of the same power.
    exchange_role: &'static str,
}

/// All that sending needs.
const MAIL_SEND: Permission = Permission {
    name: "Mail.Send",
    app_role: "b633e1c5-b582-4048-a93e-9f11b44c7e96",
    exchange_role: "Application Mail.Send",
};

/// Drafts, for messages that are too large for one request; reading as well.
const MAIL_READ_WRITE: Permission = Permission {
    name: "Mail.ReadWrite",
    app_role: "e2a3a72e-5f79-4c64-b1b1-878b674786c9",
    exchange_role: "Application Mail.ReadWrite",
};

/// The least that shows whether a message is in Sent Items.
const MAIL_READ_BASIC: Permission = Permission {
    name: "Mail.ReadBasic.All",
    app_role: "693c5e45-0940-467d-9b8a-1022fb9d42ef",
    exchange_role: "Application Mail.ReadBasic",
};

/// Register the application in Entra ID and permit it to send
#[derive(Debug, Subcommand)]
pub(super) enum Entra {
    /// Print a script that registers the application and scopes it to the mailboxes of the sender table
    #[command(
        after_help = "Read the script before you run it. Run it again after a change of the sender \
                            table or of the certificate: it changes only what differs.\n\n\
                            Examples:\n  graphpost entra script > register.ps1\n  \
                            graphpost entra script --for azure-cli > register.sh"
    )]
    Script(Script),
}

/// What `graphpost entra script` takes.
#[derive(Debug, Args)]
pub(super) struct Script {
    #[command(flatten)]
    config: ConfigFile,
    /// The language of the script
    #[arg(long = "for", value_enum, default_value_t = Language::Powershell)]
    language: Language,
    /// Restrict with New-ApplicationAccessPolicy, which Microsoft is replacing by RBAC for Applications
    #[arg(long)]
    application_access_policy: bool,
    /// The name of the application in Entra ID
    #[arg(long, default_value = "graphpost", value_name = "NAME")]
    name: String,
}

/// The language of the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Language {
    /// PowerShell with the Microsoft Graph and Exchange Online modules; does everything
    Powershell,
    /// Azure CLI for Entra ID; what Exchange must do follows as PowerShell
    AzureCli,
}

impl Entra {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Entra::Script(options) = self;
        let config = options.config.read()?;
        let files = config.tenant.credential.files().ok_or_else(|| {
            Failure::with_help(
                "the scripts register a certificate that is in a file, and [tenant.credential] names none",
                "name it for this command: GRAPHPOST__TENANT__CREDENTIAL__CERTIFICATE=app.pem",
            )
        })?;
        let password = files.password.as_ref().map(secrecy::ExposeSecret::expose_secret);
        let certificate = read_certificate(&files.certificate, password).map_err(|error| {
            Failure::with_help(
                error,
                "graphpost cert new makes a certificate; name it in [tenant.credential]",
            )
        })?;
        let script = script(&config, &certificate, &options).map_err(Failure::new)?;
        let mut out = io::stdout().lock();
        out.write_all(script.as_bytes())?;
        Ok(out.flush()?)
    }
}

/// How the application is kept to its mailboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restriction {
    /// Exchange's RBAC for Applications: the permission is granted for these mailboxes only.
    Rbac,
    /// The permission is granted for the whole tenant, and a policy takes the rest away again.
    AccessPolicy,
}

/// What the scripts are made of.
#[derive(Clone, Debug)]
struct Application<'a> {
    name: &'a str,
    tenant: &'a str,
    /// `None` while the configuration still has zeros in its place.
    client_id: Option<&'a str>,
    cloud: Cloud,
    certificate: &'a Certificate,
    mailboxes: Vec<&'a str>,
    /// What it needs, and no more.
    permissions: Vec<Permission>,
    restriction: Restriction,
}

/// The clouds by the names that Microsoft's tools give them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cloud {
    /// `Connect-MgGraph -Environment`.
    graph_module: &'static str,
    /// `Connect-ExchangeOnline -ExchangeEnvironmentName`.
    exchange_module: &'static str,
    /// `az cloud set --name`.
    azure_cli: &'static str,
    /// The host of Graph.
    graph_host: &'static str,
}

const GLOBAL: Cloud = Cloud {
    graph_module: "Global",
    exchange_module: "O365Default",
    azure_cli: "AzureCloud",
    graph_host: "graph.microsoft.com",
};

/// The cloud by the host of its Graph root; an unknown host is taken for the global one.
fn cloud(graph: &str) -> Cloud {
    match graph.trim_start_matches("https://") {
        "graph.microsoft.us" => Cloud {
            graph_module: "USGov",
            exchange_module: "O365USGovGCCHigh",
            azure_cli: "AzureUSGovernment",
            graph_host: "graph.microsoft.us",
        },
        "dod-graph.microsoft.us" => Cloud {
            graph_module: "USGovDoD",
            exchange_module: "O365USGovDoD",
            azure_cli: "AzureUSGovernment",
            graph_host: "dod-graph.microsoft.us",
        },
        "microsoftgraph.chinacloudapi.cn" => Cloud {
            graph_module: "China",
            exchange_module: "O365China",
            azure_cli: "AzureChinaCloud",
            graph_host: "microsoftgraph.chinacloudapi.cn",
        },
        _ => GLOBAL,
    }
}

/// Why there is no script.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TooManyMailboxes(usize);

impl fmt::Display for TooManyMailboxes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the sender table names {} mailboxes, and a management scope that names more than {MAX_MAILBOXES} \
             one by one does not fit into Exchange's filter; put them in a group, and scope by \
             MemberOfGroup as docs/permissions.md shows",
            self.0
        )
    }
}

impl std::error::Error for TooManyMailboxes {}

/// A filter of about 50 octets a mailbox stays well under what Exchange takes.
const MAX_MAILBOXES: usize = 200;

/// Writes the script.
///
/// # Errors
/// More mailboxes than one scope can name.
fn script(config: &Config, certificate: &Certificate, options: &Script) -> Result<String, TooManyMailboxes> {
    let mailboxes = mailboxes(config);
    if mailboxes.len() > MAX_MAILBOXES {
        return Err(TooManyMailboxes(mailboxes.len()));
    }
    let client_id = config.tenant.client_id.as_str();
    let application = Application {
        name: &options.name,
        tenant: &config.tenant.id,
        client_id: client_id
            .bytes()
            .any(|it| !matches!(it, b'0' | b'-'))
            .then_some(client_id),
        cloud: cloud(&config.tenant.graph),
        certificate,
        mailboxes,
        permissions: permissions(config),
        restriction: match options.application_access_policy {
            false => Restriction::Rbac,
            true => Restriction::AccessPolicy,
        },
    };
    Ok(match options.language {
        Language::Powershell => powershell::script(&application),
        Language::AzureCli => azure_cli::script(&application),
    })
}

/// The mailboxes of the sender table, each once, in their order.
fn mailboxes(config: &Config) -> Vec<&str> {
    let mut mailboxes: Vec<&str> = Vec::new();
    for rule in &config.senders {
        if !mailboxes.iter().any(|it| it.eq_ignore_ascii_case(&rule.mailbox)) {
            mailboxes.push(&rule.mailbox);
        }
    }
    mailboxes
}

/// The permissions that this configuration needs.
fn permissions(config: &Config) -> Vec<Permission> {
    let mut permissions = vec![MAIL_SEND];
    if config.tenant.large_messages {
        permissions.push(MAIL_READ_WRITE);
    } else if verifies(config) {
        permissions.push(MAIL_READ_BASIC);
    }
    permissions
}

/// Whether any message whose answer is lost is looked for in Sent Items.
pub(super) fn verifies(config: &Config) -> bool {
    let rules = config
        .senders
        .iter()
        .map(|it| it.unknown.unwrap_or(config.delivery.unknown));
    rules
        .chain([config.delivery.unknown])
        .any(|it| it == UnknownPolicy::Verify)
}

#[cfg(test)]
mod tests;
