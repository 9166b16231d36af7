//! What only several keys together can get wrong: open relays, shadowed rules, addresses used twice.
//! Pure.

use std::net::{Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::section::{Reader, Spot};
use super::{
    Auth, Finding, Listener, Pattern, Place, SenderRule, Severity, TlsMode, TlsProfile, UnknownPolicy,
};

/// Who may connect where `networks` is not given.
pub(super) fn loopback() -> Vec<IpNet> {
    ["127.0.0.0/8", "::1/128"]
        .iter()
        .filter_map(|it| it.parse().ok())
        .collect()
}

/// A listener, and where its keys stand.
pub(super) struct WrittenListener {
    /// Its header.
    pub place: Place,
    /// `None` if its address is missing or wrong.
    pub listener: Option<Listener>,
    pub name: Option<Spot<()>>,
    pub address: Option<Spot<()>>,
    pub tls: Option<Spot<()>>,
    pub certificate: Option<Spot<()>>,
    /// Whether the key is there, wrong or right.
    pub has_certificate: bool,
    pub tls_profile: Option<Spot<()>>,
    pub legacy_networks: Option<Spot<()>>,
    /// Whether the key is there, wrong or right.
    pub has_legacy_networks: bool,
    /// Present where the key is.
    pub tls_wait: Option<Spot<()>>,
    pub networks: Option<Spot<()>>,
    pub proxy_protocol_from: Option<Spot<()>>,
    pub auth: Option<Spot<()>>,
    pub plaintext_auth: Option<Spot<()>>,
}

impl WrittenListener {
    /// Whether clients may log in.
    pub fn has_auth(&self) -> bool {
        self.listener.as_ref().is_some_and(|it| it.auth != Auth::None)
    }

    /// Where a key stands, or the listener begins.
    fn at<'a>(&'a self, key: &'a Option<Spot<()>>) -> &'a Place {
        key.as_ref().map_or(&self.place, |it| &it.place)
    }
}

/// A sender rule, and where its keys stand.
pub(super) struct WrittenSender {
    /// Its header.
    pub place: Place,
    /// `None` if something in it is missing or wrong.
    pub rule: Option<SenderRule>,
    pub addresses: Option<Spot<Vec<Spot<Pattern>>>>,
    pub accounts: Option<Spot<usize>>,
    pub save_to_sent_items: Option<Spot<bool>>,
}

/// Listeners by themselves and beside each other.
pub(super) fn listeners(reader: &Reader, listeners: &[WrittenListener]) {
    for (at, written) in listeners.iter().enumerate() {
        let Some(listener) = &written.listener else {
            continue;
        };
        tls(reader, written, listener);
        passwords(reader, written, listener);
        if covers_everything(&listener.proxy_protocol_from) {
            reader.error(
                written.at(&written.proxy_protocol_from),
                "every client could claim any address: the PROXY protocol is believed from everywhere",
                "must name the proxies",
                "list the addresses of the proxies, such as \"10.0.0.5\"".to_owned(),
            );
        }
        for earlier in &listeners[..at] {
            let Some(other) = &earlier.listener else { continue };
            if overlap(listener.address, other.address) {
                twice(
                    reader,
                    "address",
                    (&written.address, written),
                    (&earlier.address, earlier),
                );
            } else if listener.name == other.name {
                twice(reader, "name", (&written.name, written), (&earlier.name, earlier));
            }
        }
    }
}

fn twice(
    reader: &Reader,
    what: &str,
    (spot, written): (&Option<Spot<()>>, &WrittenListener),
    (other, earlier): (&Option<Spot<()>>, &WrittenListener),
) {
    reader.push(Finding {
        severity: Severity::Error,
        title: format!("two listeners have the same {what}"),
        place: written.at(spot).clone(),
        label: "again".to_owned(),
        help: None,
        context: Some((earlier.at(other).clone(), "first".to_owned())),
    });
}

/// Whether two sockets cannot be open at once. Port 0 takes any free one.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let whole = |it: SocketAddr| it.ip().is_unspecified();
    one.port() != 0
        && one.port() == other.port()
        && (one.ip() == other.ip() || (one.is_ipv4() == other.is_ipv4() && (whole(one) || whole(other))))
}

fn tls(reader: &Reader, written: &WrittenListener, listener: &Listener) {
    if listener.tls == TlsMode::None {
        if let Some(certificate) = &written.certificate {
            reader.warning(
                &certificate.place,
                format!("{} is not used", certificate.key),
                "",
                "without 'tls' this listener speaks no TLS: set tls = \"starttls\", \"required\", \
                 \"implicit\" or \"auto\""
                    .to_owned(),
            );
        }
    } else if !written.has_certificate {
        reader.missing(
            written.at(&written.tls),
            "this listener speaks TLS, but has no certificate",
            "needs 'certificate'",
            "certificate = \"relay.pem\", and private_key = \"relay.key\" unless that file has both; or \
             certificate = \"self-signed\" to have one made"
                .to_owned(),
        );
    }
    legacy(reader, written, listener);
    if let Some(wait) = &written.tls_wait
        && listener.tls != TlsMode::Auto
    {
        reader.warning(
            &wait.place,
            format!("{} is not used", wait.key),
            "",
            "only with tls = \"auto\" a client may begin TLS before it is greeted".to_owned(),
        );
    }
}

/// TLS 1.0 is for those that are named, and no one else.
fn legacy(reader: &Reader, written: &WrittenListener, listener: &Listener) {
    let networks = &listener.legacy_networks;
    match (listener.tls_profile, &written.legacy_networks) {
        _ if listener.tls == TlsMode::None => {
            if let Some(profile) = &written.tls_profile {
                reader.warning(
                    &profile.place,
                    format!("{} is not used", profile.key),
                    "",
                    "this listener speaks no TLS".to_owned(),
                );
            }
        }
        (TlsProfile::Legacy, _) if covers_everything(networks) => reader.error(
            written.at(&written.legacy_networks),
            "TLS 1.0 would be served to everyone on the Internet",
            "covers everything",
            "name the devices that need it, or their network: legacy_networks = [\"10.1.9.0/24\"]".to_owned(),
        ),
        (TlsProfile::Legacy, None) if written.has_legacy_networks => {}
        (TlsProfile::Legacy, None) => reader.missing(
            written.at(&written.tls_profile),
            "this listener serves TLS 1.0, and does not say to whom",
            "needs 'legacy_networks'",
            "add legacy_networks = [\"10.1.9.0/24\"] with the devices that need it; 'graphpost status --tls' \
             lists them"
                .to_owned(),
        ),
        (TlsProfile::Legacy, Some(_)) => {}
        (TlsProfile::Modern | TlsProfile::Compat, Some(unused)) => reader.warning(
            &unused.place,
            format!("{} is not used", unused.key),
            "",
            "TLS 1.0 and 1.1 are served with tls_profile = \"legacy\"".to_owned(),
        ),
        (TlsProfile::Modern | TlsProfile::Compat, None) => {}
    }
}

fn passwords(reader: &Reader, written: &WrittenListener, listener: &Listener) {
    if listener.auth == Auth::None {
        return;
    }
    if listener.tls == TlsMode::None
        && listener.auth == Auth::Required
        && !is_local(listener)
        && written.plaintext_auth.is_none()
    {
        reader.error(
            written.at(&written.auth),
            "no client from another host could log in here: without TLS, passwords are taken from this host alone",
            "",
            "set 'tls', or list the networks of clients that cannot speak TLS in 'plaintext_auth'".to_owned(),
        );
    }
    if covers_everything(&listener.plaintext_auth) {
        reader.warning(
            written.at(&written.plaintext_auth),
            "passwords are taken without TLS from everywhere",
            "can be read on the way",
            "list the networks of the clients that cannot speak TLS".to_owned(),
        );
    }
}

/// Whether only this host can connect.
fn is_local(listener: &Listener) -> bool {
    let loopback = loopback();
    listener.address.ip().to_canonical().is_loopback()
        || listener
            .networks
            .iter()
            .all(|network| loopback.iter().any(|it| it.contains(network)))
}

/// Refuses what would let strangers send: the gateway must never be an open relay.
pub(super) fn open_relay(reader: &Reader, listeners: &[WrittenListener], senders: &[WrittenSender]) {
    for written in listeners {
        let Some(listener) = &written.listener else {
            continue;
        };
        if listener.address.ip().to_canonical().is_loopback() || listener.auth == Auth::Required {
            continue;
        }
        if listener.auth == Auth::None && written.networks.is_none() {
            reader.missing(
                written.at(&written.address),
                "this listener can be reached from other hosts, and does not say from which",
                "needs 'networks' or 'auth'",
                "add networks = [\"10.1.0.0/16\"] with the networks of your clients, or auth = \"required\""
                    .to_owned(),
            );
            continue;
        }
        if !covers_everything(&listener.networks) {
            if let Some(wide) = listener.networks.iter().find(|it| is_wide(it)) {
                reader.warning(
                    written.at(&written.networks),
                    format!("{wide} is a very large part of the Internet"),
                    "may send without logging in",
                    "list the networks of your clients".to_owned(),
                );
            }
            continue;
        }
        match listener.auth {
            Auth::None => reader.error(
                written.at(&written.networks),
                "this would be an open relay: everyone on the Internet may connect, and no one logs in",
                "covers everything",
                "list only the networks of your clients, or set auth = \"required\"".to_owned(),
            ),
            Auth::Optional => {
                for sender in senders.iter().filter(|it| takes_strangers(it)) {
                    reader.push(Finding {
                        severity: Severity::Error,
                        title: "this would be an open relay: everyone on the Internet may send by this rule \
                                without logging in"
                            .to_owned(),
                        place: sender.place.clone(),
                        label: "needs 'accounts' or 'networks'".to_owned(),
                        help: Some(
                            "restrict the rule, list only the networks of your clients in the listener, or set \
                             auth = \"required\" there"
                                .to_owned(),
                        ),
                        context: Some((written.at(&written.networks).clone(), "covers everything".to_owned())),
                    });
                }
            }
            Auth::Required => {}
        }
    }
}

/// Whether a rule lets a client send that comes from anywhere and has not logged in.
fn takes_strangers(sender: &WrittenSender) -> bool {
    sender.rule.as_ref().is_some_and(|rule| {
        rule.accounts.is_empty() && (rule.networks.is_empty() || covers_everything(&rule.networks))
    })
}

/// Whether networks together cover half of the IPv4 Internet or of the global IPv6 one: as good as
/// all, and `0.0.0.0/1` with `128.0.0.0/1` is no way around.
pub(super) fn covers_everything(networks: &[IpNet]) -> bool {
    let mut v4: Vec<Ipv4Net> = Vec::new();
    let mut v6: Vec<Ipv6Net> = Vec::new();
    for network in networks {
        match network {
            IpNet::V4(it) => v4.push(*it),
            IpNet::V6(it) => {
                v6.push(*it);
                // Around all IPv4-mapped addresses (RFC 4291 §2.5.5.2). A network within them has
                // been read as the IPv4 network it stands for.
                if it.contains(&Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)) {
                    v4.push(Ipv4Net::new_assert([0, 0, 0, 0].into(), 0));
                }
            }
        }
    }
    // Global unicast addresses, RFC 4291 §2.4 and its registry.
    let global = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
    let v4: u64 = Ipv4Net::aggregate(&v4)
        .iter()
        .map(|it| 1u64 << (32 - it.prefix_len()))
        .sum();
    let v6: u128 = Ipv6Net::aggregate(&v6)
        .iter()
        .map(|it| match (it.contains(&global), global.contains(it)) {
            (true, _) => 1 << 125,
            (false, true) => 1u128 << (128 - it.prefix_len()),
            (false, false) => 0,
        })
        .sum();
    v4 >= 1 << 31 || v6 >= 1 << 124
}

/// More than any organisation has.
fn is_wide(network: &IpNet) -> bool {
    match network {
        IpNet::V4(it) => it.prefix_len() < 8,
        IpNet::V6(it) => {
            let private = it.addr().is_unique_local() || it.addr().is_unicast_link_local();
            it.prefix_len() < 19 && !private
        }
    }
}

/// Rules that can never match, because earlier ones take all that they would.
pub(super) fn senders(reader: &Reader, senders: &[WrittenSender]) {
    for (at, written) in senders.iter().enumerate() {
        let Some(addresses) = &written.addresses else {
            continue;
        };
        let Some(rule) = &written.rule else { continue };
        let earlier = || {
            senders[..at]
                .iter()
                .filter_map(|it| Some((it, it.rule.as_ref()?)))
        };
        let taken_by = |pattern: &Pattern| {
            earlier().find(|(_, it)| {
                it.addresses.iter().any(|wide| covers(wide, pattern)) && takes_all_clients(it, rule)
            })
        };
        let takers: Vec<_> = rule.addresses.iter().map(taken_by).collect();
        if let Some(Some((first, other))) = takers.first()
            && takers.iter().all(Option::is_some)
        {
            reader.push(Finding {
                severity: Severity::Warning,
                title: format!("{} never matches: earlier rules take all its senders", rule.name),
                place: addresses.place.clone(),
                label: String::new(),
                help: Some("the first rule that matches decides; put the narrower one first".to_owned()),
                context: Some((
                    first
                        .addresses
                        .as_ref()
                        .map_or(first.place.clone(), |it| it.place.clone()),
                    format!("{} takes them", other.name),
                )),
            });
        }
    }
}

/// Whether every address that the one matches is matched by the other.
fn covers(wide: &Pattern, narrow: &Pattern) -> bool {
    match (wide, narrow) {
        (Pattern::Any, Pattern::Null) | (Pattern::Null, _) => wide == narrow,
        (Pattern::Any, _) => true,
        (Pattern::Domain(domain), Pattern::Exact(address)) => {
            address.rsplit_once('@').is_some_and(|(_, it)| it == domain)
        }
        _ => wide == narrow,
    }
}

/// Whether every client that `narrow` is for may use `wide` too.
fn takes_all_clients(wide: &SenderRule, narrow: &SenderRule) -> bool {
    let networks = wide.networks.is_empty()
        || (!narrow.networks.is_empty()
            && narrow
                .networks
                .iter()
                .all(|it| wide.networks.iter().any(|wide| wide.contains(it))));
    let accounts = wide.accounts.is_empty()
        || (!narrow.accounts.is_empty() && narrow.accounts.iter().all(|it| wide.accounts.contains(it)));
    networks && accounts
}

/// Rules for accounts where no one can log in.
pub(super) fn unused_accounts(reader: &Reader, listeners: &[WrittenListener], senders: &[WrittenSender]) {
    if listeners.iter().any(|it| it.listener.is_none() || it.has_auth()) {
        return;
    }
    for accounts in senders
        .iter()
        .filter_map(|it| it.accounts.as_ref())
        .filter(|it| it.value > 0)
    {
        reader.warning(
            &accounts.place,
            format!(
                "{} can never match: no listener lets clients log in",
                accounts.key
            ),
            "",
            "set auth = \"optional\" or \"required\" in a [[listener]]".to_owned(),
        );
    }
}

/// What is to be looked for in Sent Items must be kept there.
pub(super) fn verifiable(reader: &Reader, senders: &[WrittenSender], unknown: UnknownPolicy) {
    for written in senders {
        if let (Some(rule), Some(saved)) = (&written.rule, &written.save_to_sent_items)
            && !saved.value
            && rule.unknown.unwrap_or(unknown) == UnknownPolicy::Verify
        {
            reader.error(
                &saved.place,
                format!(
                    "{} sends without a copy in Sent Items, where unknown = \"verify\" looks for it",
                    rule.name
                ),
                "must be true",
                "set save_to_sent_items = true, or unknown = \"retry\" or \"hold\" for this rule".to_owned(),
            );
        }
    }
}

/// The status page beside the listeners.
pub(super) fn admin(
    reader: &Reader,
    address: SocketAddr,
    place: &Place,
    key: &str,
    listeners: &[WrittenListener],
) {
    for written in listeners {
        if let Some(listener) = &written.listener
            && overlap(listener.address, address)
        {
            reader.push(Finding {
                severity: Severity::Error,
                title: format!("{key} is the address of a listener too"),
                place: place.clone(),
                label: "again".to_owned(),
                help: None,
                context: Some((written.at(&written.address).clone(), "first".to_owned())),
            });
        }
    }
    if !address.ip().to_canonical().is_loopback() {
        reader.warning(
            place,
            format!("{key} can be reached from other hosts, and asks for no password"),
            "",
            "let a firewall keep others away, or listen on 127.0.0.1".to_owned(),
        );
    }
}
