//! May this client, as this account, send from this address, and through which mailbox? Pure.

use std::fmt;
use std::net::IpAddr;

use crate::config::{Pattern, SenderRule};
use crate::envelope::{HeaderFrom, ReversePath, Route};
use crate::message::Head;

/// The sender table.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<SenderRule>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its address.
    pub address: IpAddr,
    /// The account it logged in as, lower case.
    pub account: Option<&'a str>,
}

/// Why a sender is refused. Its `Display` is for the owner of the application that sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No rule lets this client send from this envelope sender.
    Envelope(String),
    /// No rule lets this client send with this address in a field that says who sends.
    Header {
        /// The field: From, Sender, Resent-From or Resent-Sender.
        field: &'static str,
        /// The address in it.
        address: String,
    },
    /// From is to stay or to be the mailbox, and no address in it can be read.
    Unreadable {
        /// The envelope's rule.
        rule: String,
    },
    /// The rule says `header_from = "refuse"`, and From is not the mailbox.
    NotMailbox {
        /// The From address.
        from: String,
        /// The rule that refused.
        rule: String,
        /// Its mailbox.
        mailbox: String,
    },
}

impl Policy {
    /// Takes the rules in their order.
    pub fn new(rules: Vec<SenderRule>) -> Policy {
        Policy { rules }
    }

    /// The first rule that permits the envelope sender (at MAIL).
    ///
    /// # Errors
    /// [`Denied::Envelope`] where there is none.
    pub fn envelope(&self, client: Client<'_>, sender: &ReversePath) -> Result<Route, Denied> {
        self.first_match(client, sender)
            .map(|rule| Route {
                mailbox: rule.mailbox.clone(),
                rule: rule.name.clone(),
                header_from: rule.header_from,
                save_to_sent_items: rule.save_to_sent_items,
                format: rule.format,
                unknown: rule.unknown,
            })
            .ok_or_else(|| Denied::Envelope(sender.to_string()))
    }

    /// Checks what the header of a message says about who sends, where its envelope sender has
    /// `route` (at end of data): every address in From, Sender, Resent-From and Resent-Sender.
    /// Whoever may send through a mailbox may name it; any other address must be permitted by a rule
    /// of its own. Without a From field the mailbox becomes it, so there is nothing to check.
    ///
    /// # Errors
    /// The first address that is not permitted.
    pub fn header(&self, client: Client<'_>, route: &Route, head: &Head) -> Result<(), Denied> {
        // A From that we cannot read, another reader may. It does no harm where it is replaced.
        if head.from_unreadable && route.header_from != HeaderFrom::Mailbox {
            return Err(Denied::Unreadable {
                rule: route.rule.clone(),
            });
        }
        for address in &head.from {
            if route.header_from == HeaderFrom::Refuse && !same(address.as_str(), &route.mailbox) {
                return Err(Denied::NotMailbox {
                    from: address.to_string(),
                    rule: route.rule.clone(),
                    mailbox: route.mailbox.clone(),
                });
            }
        }
        let from = head.from.iter().map(|address| ("From", address));
        let senders = head.senders.iter().map(|(field, address)| (*field, address));
        for (field, address) in from.chain(senders) {
            let permitted = same(address.as_str(), &route.mailbox)
                || self
                    .first_match(client, &ReversePath(Some(address.clone())))
                    .is_some();
            if !permitted {
                return Err(Denied::Header {
                    field,
                    address: address.to_string(),
                });
            }
        }
        Ok(())
    }

    /// The rule that permits the envelope sender, to show it.
    pub fn rule(&self, client: Client<'_>, sender: &ReversePath) -> Option<&SenderRule> {
        self.first_match(client, sender)
    }

    fn first_match(&self, client: Client<'_>, sender: &ReversePath) -> Option<&SenderRule> {
        self.rules.iter().find(|rule| {
            rule.addresses.iter().any(|pattern| matches(pattern, sender))
                && (rule.networks.is_empty() || rule.networks.iter().any(|it| it.contains(&client.address)))
                && (rule.accounts.is_empty()
                    || client
                        .account
                        .is_some_and(|account| rule.accounts.iter().any(|it| same(account, it))))
        })
    }
}

fn matches(pattern: &Pattern, sender: &ReversePath) -> bool {
    match (pattern, &sender.0) {
        (Pattern::Null, sender) => sender.is_none(),
        (Pattern::Any, sender) => sender.is_some(),
        (Pattern::Exact(_) | Pattern::Domain(_), None) => false,
        (Pattern::Exact(text), Some(sender)) => same(sender.as_str(), text),
        (Pattern::Domain(text), Some(sender)) => sender.domain().is_some_and(|domain| same(domain, text)),
    }
}

/// Equal but for case. Text beyond ASCII equals only text beyond ASCII: the Kelvin sign is a `k` to
/// `to_lowercase`, and to nobody who reads a rule.
fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
        || !one.is_ascii() && !other.is_ascii() && one.to_lowercase() == other.to_lowercase()
}

impl Denied {
    /// The refused address, and the rule that refused it if it was a rule that did.
    pub fn for_log(&self) -> (&str, Option<&str>) {
        match self {
            Denied::Envelope(from) => (from, None),
            Denied::Header { address, .. } => (address, None),
            Denied::Unreadable { rule } => ("", Some(rule)),
            Denied::NotMailbox { from, rule, .. } => (from, Some(rule)),
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denied::Envelope(from) if from == "<>" => f.write_str(
                "This relay does not take messages without a sender (MAIL FROM:<>) from this client; \
                 ask its administrator to permit \"<>\" in a [[sender]] rule",
            ),
            Denied::Envelope(from) => write!(
                f,
                "This client may not send as {from}; set another sender address in the application, \
                 or ask the administrator of this relay to permit it in a [[sender]] rule"
            ),
            Denied::Header {
                field: "From",
                address,
            } => write!(
                f,
                "This client may not send with {address} in the From field; set another From address in \
                 the application, or ask the administrator of this relay to permit it in a [[sender]] rule"
            ),
            Denied::Header { field, address } => write!(
                f,
                "This client may not send with {address} in the {field} field; remove the field, or ask \
                 the administrator of this relay to permit the address in a [[sender]] rule"
            ),
            Denied::Unreadable { .. } => f.write_str(
                "The From field has no address that can be read; set a From address in the application",
            ),
            Denied::NotMailbox { from, mailbox, .. } => write!(
                f,
                "The From field has {from} but must have {mailbox}; set that as the From address in \
                 the application, or ask the administrator of this relay to change header_from"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    fn rule(name: &str, addresses: &[Pattern], mailbox: &str) -> SenderRule {
        SenderRule {
            name: name.into(),
            line: 1,
            addresses: addresses.to_vec(),
            mailbox: mailbox.into(),
            networks: vec![],
            accounts: vec![],
            header_from: HeaderFrom::Mailbox,
            save_to_sent_items: false,
            format: None,
            unknown: None,
        }
    }

    fn exact(text: &str) -> Pattern {
        Pattern::Exact(text.into())
    }

    fn domain(text: &str) -> Pattern {
        Pattern::Domain(text.into())
    }

    fn address(text: &str) -> Address {
        Address::parse(text).expect("an address")
    }

    fn sender(text: &str) -> ReversePath {
        ReversePath((text != "<>").then(|| address(text)))
    }

    const HERE: Client<'static> = Client {
        address: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        account: None,
    };

    fn client<'a>(address: &str, account: Option<&'a str>) -> Client<'a> {
        Client {
            address: address.parse().expect("an IP address"),
            account,
        }
    }

    #[test]
    fn the_first_match_wins() {
        let policy = Policy::new(vec![
            rule(
                "one",
                &[exact("erp@contoso.com"), exact("printer")],
                "a@contoso.com",
            ),
            rule("two", &[domain("contoso.com")], "b@contoso.com"),
            rule("three", &[Pattern::Null], "c@contoso.com"),
        ]);
        for (from, want) in [
            ("erp@contoso.com", Some("one")),
            ("ERP@Contoso.COM", Some("one")),
            ("printer", Some("one")),
            ("Printer", Some("one")),
            ("crm@contoso.com", Some("two")),
            ("<>", Some("three")),
            ("printer@elsewhere.example", None),
            // A domain is that domain: no subdomain, no suffix, and the last `@` decides.
            ("a@sub.contoso.com", None),
            ("a@notcontoso.com", None),
            ("a@contoso.com@evil.example", None),
            ("\"x@contoso.com\"@evil.example", None),
            ("contoso.com", None),
            // Quoted, it is another text; it is not on the list.
            ("\"erp\"@contoso.org", None),
        ] {
            let got = policy.envelope(HERE, &sender(from));
            assert_eq!(got.as_ref().ok().map(|it| it.rule.as_str()), want, "{from}");
        }
    }

    #[test]
    fn any_is_any_address_but_not_the_null_reverse_path() {
        let policy = Policy::new(vec![rule("any", &[Pattern::Any], "a@b")]);
        assert!(policy.envelope(HERE, &sender("x@y")).is_ok());
        assert_eq!(
            policy.envelope(HERE, &sender("<>")),
            Err(Denied::Envelope("<>".into()))
        );
    }

    #[test]
    fn case_is_no_way_around() {
        let policy = Policy::new(vec![rule(
            "r",
            &[domain("kontoso.com"), domain("müller.example")],
            "a@b",
        )]);
        assert!(policy.envelope(HERE, &sender("a@KONTOSO.com")).is_ok());
        assert!(policy.envelope(HERE, &sender("a@\u{212a}ontoso.com")).is_err());
        assert!(policy.envelope(HERE, &sender("a@MÜLLER.example")).is_ok());
    }

    #[test]
    fn networks_and_accounts_restrict_a_rule() {
        let mut by_network = rule("network", &[Pattern::Any], "a@b");
        by_network.networks = vec!["10.1.0.0/16".parse().expect("a network")];
        let mut by_account = rule("account", &[Pattern::Any], "a@b");
        by_account.accounts = vec!["scanner1".into()];
        let policy = Policy::new(vec![by_network, by_account]);
        for (client, want) in [
            (client("10.1.2.3", None), Some("network")),
            (client("10.2.2.3", None), None),
            (client("10.2.2.3", Some("scanner1")), Some("account")),
            (client("10.2.2.3", Some("Scanner1")), Some("account")),
            (client("10.2.2.3", Some("scanner2")), None),
            (client("::1", None), None),
        ] {
            let got = policy.envelope(client, &sender("x@y"));
            assert_eq!(got.as_ref().ok().map(|it| it.rule.as_str()), want, "{client:?}");
        }
    }

    #[test]
    fn every_from_address_must_be_permitted() {
        let mut elsewhere = rule("elsewhere", &[exact("boss@contoso.com")], "boss@contoso.com");
        elsewhere.networks = vec!["10.0.0.0/8".parse().expect("a network")];
        let mut keep = rule("keep", &[exact("crm@contoso.com")], "crm@contoso.com");
        keep.header_from = HeaderFrom::Keep;
        let mut refuse = rule("refuse", &[exact("fax@contoso.com")], "Fax-Out@contoso.com");
        refuse.header_from = HeaderFrom::Refuse;
        let policy = Policy::new(vec![
            rule(
                "erp",
                &[exact("erp@contoso.com"), domain("legacy.local")],
                "service@contoso.com",
            ),
            elsewhere,
            keep,
            refuse,
        ]);
        let check = |envelope: &str, from: &[&str]| {
            let route = policy.envelope(HERE, &sender(envelope)).expect("permitted");
            let from = from.iter().map(|it| address(it)).collect();
            policy.header(
                HERE,
                &route,
                &Head {
                    from,
                    ..Head::default()
                },
            )
        };
        let denied = |from: &str| {
            Err(Denied::Header {
                field: "From",
                address: from.into(),
            })
        };

        assert_eq!(check("erp@contoso.com", &[]), Ok(()));
        assert_eq!(check("erp@contoso.com", &["ERP@contoso.com"]), Ok(()));
        assert_eq!(
            check("erp@contoso.com", &["x@legacy.local", "crm@contoso.com"]),
            Ok(())
        );
        // The mailbox itself may always be named.
        assert_eq!(check("erp@contoso.com", &["Service@contoso.com"]), Ok(()));
        // An allowed envelope is no way around for a forbidden From, and one good address in From
        // is none for a bad one.
        assert_eq!(
            check("erp@contoso.com", &["ceo@contoso.com"]),
            denied("ceo@contoso.com")
        );
        assert_eq!(
            check("erp@contoso.com", &["erp@contoso.com", "x@y"]),
            denied("x@y")
        );
        assert_eq!(
            check("crm@contoso.com", &["ceo@contoso.com"]),
            denied("ceo@contoso.com")
        );
        // A rule for other clients permits nothing to this one.
        assert_eq!(
            check("erp@contoso.com", &["boss@contoso.com"]),
            denied("boss@contoso.com")
        );

        assert_eq!(check("fax@contoso.com", &["fax-out@contoso.com"]), Ok(()));
        assert_eq!(check("fax@contoso.com", &[]), Ok(()));
        assert_eq!(
            check("fax@contoso.com", &["fax@contoso.com"]),
            Err(Denied::NotMailbox {
                from: "fax@contoso.com".into(),
                rule: "refuse".into(),
                mailbox: "Fax-Out@contoso.com".into(),
            })
        );
    }

    #[test]
    fn the_other_fields_that_say_who_sends_are_checked_too() {
        let mut keep = rule("keep", &[exact("crm@contoso.com")], "crm@contoso.com");
        keep.header_from = HeaderFrom::Keep;
        let policy = Policy::new(vec![
            rule("erp", &[exact("erp@contoso.com")], "service@contoso.com"),
            keep,
        ]);
        let check = |envelope: &str, head: Head| {
            let route = policy.envelope(HERE, &sender(envelope)).expect("permitted");
            policy.header(HERE, &route, &head)
        };
        let senders = |field, of: &str| Head {
            senders: vec![(field, address(of))],
            ..Head::default()
        };
        assert_eq!(
            check("erp@contoso.com", senders("Sender", "crm@contoso.com")),
            Ok(())
        );
        assert_eq!(
            check("erp@contoso.com", senders("Sender", "service@contoso.com")),
            Ok(())
        );
        for field in ["Sender", "Resent-From", "Resent-Sender"] {
            let denied = check("erp@contoso.com", senders(field, "ceo@contoso.com"));
            assert_eq!(
                denied,
                Err(Denied::Header {
                    field,
                    address: "ceo@contoso.com".into()
                })
            );
        }
        // Where From is replaced it need not be read; where it stays it must be.
        let unreadable = || Head {
            from_unreadable: true,
            ..Head::default()
        };
        assert_eq!(check("erp@contoso.com", unreadable()), Ok(()));
        assert_eq!(
            check("crm@contoso.com", unreadable()),
            Err(Denied::Unreadable { rule: "keep".into() })
        );
    }

    #[test]
    fn without_rules_nobody_sends() {
        let policy = Policy::new(vec![]);
        let denied = policy.envelope(HERE, &sender("a@b")).expect_err("denied");
        assert!(denied.to_string().contains("a@b") && denied.to_string().contains("[[sender]]"));
    }
}
