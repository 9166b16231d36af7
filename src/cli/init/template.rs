//! The configuration that `init` writes: the shipped one, with the answers in it. Pure.

use std::net::SocketAddr;

use ipnet::IpNet;

/// The file that documents every key, so that there is no second one to keep in step.
const TEMPLATE: &str = include_str!("../../../config/graphpost.toml");

pub(super) const CERTIFICATE: &str = "graphpost.pem";
pub(super) const PRIVATE_KEY: &str = "graphpost.key";

/// What was answered.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    pub(super) tenant: String,
    pub(super) client_id: String,
    pub(super) listen: SocketAddr,
    /// Empty for the default, which is this host alone.
    pub(super) networks: Vec<IpNet>,
    pub(super) senders: Vec<String>,
    pub(super) mailbox: String,
}

/// The template with the answers in it.
pub(super) fn fill(answers: &Answers) -> String {
    let mut values = vec![
        ("[tenant]", "id = ", text(&answers.tenant)),
        ("[tenant]", "client_id = ", text(&answers.client_id)),
        ("[tenant.credential]", "certificate = ", text(CERTIFICATE)),
        ("[tenant.credential]", "private_key = ", text(PRIVATE_KEY)),
        ("[[listener]]", "address = ", text(&answers.listen.to_string())),
        ("[[sender]]", "address = ", list(&answers.senders)),
        ("[[sender]]", "mailbox = ", text(&answers.mailbox)),
    ];
    if !answers.networks.is_empty() {
        let networks: Vec<String> = answers.networks.iter().map(ToString::to_string).collect();
        values.push(("[[listener]]", "networks = ", list(&networks)));
    }
    let mut filled = String::with_capacity(TEMPLATE.len() + 256);
    let mut section = "";
    for line in TEMPLATE.lines() {
        if line.starts_with('[') {
            section = line;
        }
        // A key that is shown with its default begins with "#".
        let key = line.strip_prefix('#').unwrap_or(line);
        let value = values
            .iter()
            .find(|(of, name, _)| *of == section && key.starts_with(name));
        match value {
            Some((_, name, value)) => filled.extend([name, value.as_str()]),
            None => filled.push_str(line),
        }
        filled.push('\n');
    }
    filled
}

fn text(value: &str) -> String {
    toml::Value::from(value).to_string()
}

fn list(values: &[String]) -> String {
    let values: Vec<toml::Value> = values.iter().map(|it| it.as_str().into()).collect();
    toml::Value::from(values).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_are_in_their_places_and_nothing_else_is_changed() {
        let answers = Answers {
            tenant: "fabrikam.onmicrosoft.com".to_owned(),
            client_id: "11111111-2222-3333-4444-555555555555".to_owned(),
            listen: "10.1.0.5:25".parse().expect("an address"),
            networks: vec!["10.1.0.0/16".parse().expect("a network")],
            senders: vec![
                "it's \"quoted\"@fabrikam.com".to_owned(),
                "*@fabrikam.local".to_owned(),
            ],
            mailbox: "mail@fabrikam.com".to_owned(),
        };
        let filled = fill(&answers);
        let table: toml::Table = filled.parse().expect("TOML");
        let shown = |section: &toml::Value, key: &str| section[key].to_string();
        assert_eq!(shown(&table["tenant"], "id"), "\"fabrikam.onmicrosoft.com\"");
        assert_eq!(
            shown(&table["tenant"]["credential"], "private_key"),
            "\"graphpost.key\""
        );
        assert_eq!(shown(&table["listener"][0], "networks"), "[\"10.1.0.0/16\"]");
        assert_eq!(
            table["sender"][0]["address"][0].as_str(),
            Some(answers.senders[0].as_str())
        );
        assert_eq!(shown(&table["sender"][0], "mailbox"), "\"mail@fabrikam.com\"");
        let changed = filled
            .lines()
            .zip(TEMPLATE.lines())
            .filter(|(filled, template)| filled != template)
            .count();
        assert_eq!(changed, 8);
        assert_eq!(filled.lines().count(), TEMPLATE.lines().count());
    }
}
