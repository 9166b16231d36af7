//! `graphpost policy`: what the sender table says, without sending anything.

use std::io::{self, Write as _};
use std::net::IpAddr;

use clap::{Args, Subcommand};

use super::{ConfigFile, Failure};
use crate::address::Address;
use crate::config::Config;
use crate::envelope::{HeaderFrom, ReversePath};
use crate::message::Head;
use crate::policy::{Client, Denied, Policy};

/// Ask the sender table who may send as whom
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(super) struct PolicyCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say whether a client may send a message, by which rule, and through which mailbox
    ///
    /// Sends nothing and asks nobody: it reads the configuration as the gateway would. The exit status
    /// is 1 where the message would be refused.
    #[command(
        after_help = "Examples:\n  graphpost policy test --client 10.1.2.3 --from erp@contoso.com\n  \
                  graphpost policy test --client 10.1.2.3 --account scanner1 --from a@b.example \
                  --header-from c@d.example"
    )]
    Test(Test),
}

#[derive(Debug, Args)]
struct Test {
    /// The client's IP address
    #[arg(long, value_name = "IP")]
    client: IpAddr,
    /// The account it has logged in as
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// The envelope sender (MAIL FROM); "<>" for none
    #[arg(long, value_name = "ADDRESS")]
    from: String,
    /// An address in the From field; may be given more than once
    #[arg(long, value_name = "ADDRESS")]
    header_from: Vec<String>,
    /// The address in the Sender field
    #[arg(long, value_name = "ADDRESS")]
    sender: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
}

impl PolicyCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Verb::Test(test) = self.verb;
        let config = test.config.read()?;
        let verdict = test.verdict(&config)?;
        let permitted = verdict.permitted;
        io::stdout().lock().write_all(verdict.text.as_bytes())?;
        if permitted { Ok(()) } else { Err(Failure::Told) }
    }
}

struct Verdict {
    permitted: bool,
    text: String,
}

impl Test {
    fn verdict(&self, config: &Config) -> Result<Verdict, Failure> {
        let account = self.account.as_ref().map(|it| it.to_lowercase());
        let client = Client {
            address: self.client.to_canonical(),
            account: account.as_deref(),
        };
        let reverse_path = match self.from.as_str() {
            "" | "<>" => ReversePath(None),
            text => ReversePath(Some(address("--from", text)?)),
        };
        let head = Head {
            from: self
                .header_from
                .iter()
                .map(|it| address("--header-from", it))
                .collect::<Result<_, _>>()?,
            senders: match &self.sender {
                Some(text) => vec![("Sender", address("--sender", text)?)],
                None => vec![],
            },
            ..Head::default()
        };

        let policy = Policy::new(config.senders.clone());
        let outcome = policy
            .envelope(client, &reverse_path)
            .and_then(|route| policy.header(client, &route, &head).map(|()| route));
        let place = |name: &str, line: usize| format!("{name} ({}:{line})", config.path.display());
        let rule = policy
            .rule(client, &reverse_path)
            .map(|it| place(&it.name, it.line));
        let mut text = match &outcome {
            Ok(route) => format!(
                "permitted\n  rule     {}\n  mailbox  {}\n  From     {}\n",
                rule.unwrap_or_else(|| route.rule.clone()),
                route.mailbox,
                match route.header_from {
                    HeaderFrom::Mailbox => "becomes the mailbox",
                    HeaderFrom::Keep => "stays; the mailbox needs Send As for it",
                    HeaderFrom::Refuse => "is the mailbox already",
                }
            ),
            Err(denied) => format!(
                "refused: 550 5.7.1 {denied}\n  rule     {}\n",
                match (denied, rule) {
                    (Denied::Envelope(_), _) | (_, None) => "none matches".to_owned(),
                    (Denied::Header { .. }, Some(rule)) =>
                        format!("{rule} permits the envelope; none permits the address in the header"),
                    (_, Some(rule)) => rule,
                }
            ),
        };
        if !config
            .listeners
            .iter()
            .any(|it| it.networks.iter().any(|it| it.contains(&client.address)))
        {
            text += &format!("  but      no listener lets {} connect\n", client.address);
        }
        Ok(Verdict {
            permitted: outcome.is_ok(),
            text,
        })
    }
}

fn address(option: &str, text: &str) -> Result<Address, Failure> {
    Address::parse(text).map_err(|why| Failure::new(format_args!("{option}: {why}")))
}
