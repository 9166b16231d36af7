//! Who receives a message: the envelope, and nobody else.
//!
//! The header says only who is shown, and by what name. A header recipient that is not in the
//! envelope gets no mail and is not shown either, since Graph sends to everyone that it shows; an
//! envelope recipient that is in no header is a blind copy, disclosed to no one.

use std::collections::HashMap;

use crate::address::Address;
use crate::graph::resource::Recipient;
use crate::message::addresses::{self, Mailbox};
use crate::message::fields::HeaderSection;

/// The recipients, each of the envelope exactly once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipients {
    /// Those in a To field.
    pub to: Vec<Recipient>,
    /// Those in a Cc field.
    pub cc: Vec<Recipient>,
    /// The others.
    pub bcc: Vec<Recipient>,
}

impl Recipients {
    /// Shows of `envelope` what the header shows. Its Bcc fields are of no account: who is in them
    /// and in the envelope is a blind copy, who is only in them is none.
    pub fn of(header: &HeaderSection<'_>, envelope: &[Address]) -> Recipients {
        let mut left: HashMap<String, usize> = HashMap::with_capacity(envelope.len());
        for (at, address) in envelope.iter().enumerate() {
            left.entry(key(address)).or_insert(at);
        }
        let mut shown = |name: &str| -> Vec<Recipient> {
            header
                .all(name)
                .flat_map(|field| addresses::parse(field.value()))
                .filter_map(|Mailbox { name, address }| {
                    let at = left.remove(&key(&address))?;
                    // The address as the client gave it in RCPT: that is where the mail goes.
                    let address = envelope[at].clone();
                    Some(Recipient { name, address })
                })
                .collect()
        };
        let (to, cc) = (shown("to"), shown("cc"));
        let mut blind: Vec<usize> = left.into_values().collect();
        blind.sort_unstable();
        let bcc = blind
            .into_iter()
            .map(|at| Recipient {
                name: None,
                address: envelope[at].clone(),
            })
            .collect();
        Recipients { to, cc, bcc }
    }
}

/// What two spellings of one address have in common.
fn key(address: &Address) -> String {
    let text = address.as_str();
    // RCPT TO:<"a"@b> and To: a@b. Quotes that are needed stay.
    let plain = text
        .strip_prefix('"')
        .and_then(|it| it.split_once('"'))
        .filter(|(local, domain)| domain.starts_with('@') && !local.contains(['\\', ' ', '@']))
        .map(|(local, domain)| format!("{local}{domain}"));
    plain.as_deref().unwrap_or(text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, envelope: &[&str], to: &[&str], cc: &[&str], bcc: &[&str]) {
        let envelope: Vec<Address> = envelope
            .iter()
            .map(|it| Address::parse(it).expect("an address"))
            .collect();
        let got = Recipients::of(&HeaderSection::split(header.as_bytes()), &envelope);
        let texts = |list: &[Recipient]| -> Vec<String> {
            list.iter()
                .map(|it| match &it.name {
                    Some(name) => format!("{name} <{}>", it.address),
                    None => it.address.to_string(),
                })
                .collect()
        };
        assert_eq!(
            (texts(&got.to), texts(&got.cc), texts(&got.bcc)),
            (
                to.iter().map(|it| (*it).to_owned()).collect(),
                cc.iter().map(|it| (*it).to_owned()).collect(),
                bcc.iter().map(|it| (*it).to_owned()).collect(),
            ),
            "{header:?}"
        );
    }

    #[test]
    fn the_envelope_is_the_truth() {
        check(
            "To: a@x\r\nCc: b@x\r\n\r\n",
            &["a@x", "b@x"],
            &["a@x"],
            &["b@x"],
            &[],
        );
        // Not addressed by the client: gets nothing.
        check("To: a@x, b@x\r\nCc: c@x\r\n\r\n", &["a@x"], &["a@x"], &[], &[]);
        // Addressed, and in no header.
        check(
            "To: a@x\r\n\r\n",
            &["b@x", "a@x", "c@x"],
            &["a@x"],
            &[],
            &["b@x", "c@x"],
        );
        check("Subject: x\r\n\r\n", &["a@x"], &[], &[], &["a@x"]);
        check("", &["a@x"], &[], &[], &["a@x"]);
        // Bcc fields say nothing, neither whom to send to nor whom to show.
        check(
            "To: a@x\r\nBcc: b@x, c@x\r\n\r\n",
            &["a@x", "b@x"],
            &["a@x"],
            &[],
            &["b@x"],
        );
        check(
            "To: undisclosed recipients:;\r\n\r\n",
            &["a@x"],
            &[],
            &[],
            &["a@x"],
        );
        check("To:\r\nCc: ,\r\n\r\n", &["a@x"], &[], &[], &["a@x"]);
    }

    #[test]
    fn one_address_has_many_spellings() {
        check(
            "To: Ann <A@X.Example>\r\n\r\n",
            &["a@x.EXAMPLE"],
            &["Ann <a@x.EXAMPLE>"],
            &[],
            &[],
        );
        check(
            "To: Team: a@x (Ann), <b@x>;\r\n\r\n",
            &["a@x", "b@x"],
            &["Ann <a@x>", "b@x"],
            &[],
            &[],
        );
        check(
            "To: a@x\r\nTo: b@x\r\n\r\n",
            &["a@x", "b@x"],
            &["a@x", "b@x"],
            &[],
            &[],
        );
        check("To: <@r.example:a@x>\r\n\r\n", &["a@x"], &["a@x"], &[], &[]);
        check("To: \"a\"@x\r\n\r\n", &["a@x"], &["a@x"], &[], &[]);
        check("To: a@x\r\n\r\n", &["\"a\"@x"], &["\"a\"@x"], &[], &[]);
        check("To: GRÜN@x\r\n\r\n", &["grün@x"], &["grün@x"], &[], &[]);
        // Each once, wherever it stands.
        check(
            "To: a@x, A@x\r\nCc: a@X\r\n\r\n",
            &["a@x", "A@X"],
            &["a@x"],
            &[],
            &[],
        );
    }
}
