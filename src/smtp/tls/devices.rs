//! Which clients still need old TLS, or cannot be served: for the admin who would like to turn it off.
//! Pure: the time is an argument.

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The most clients that are remembered as served, and as refused; the one that was seen longest ago
/// makes room. The log has them all.
pub const MAX_DEVICES: usize = 1000;

/// What one client did on one listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its address.
    pub client: IpAddr,
    /// The listener's name.
    pub listener: String,
    /// The profile that it needs: `compat` or `legacy`; absent where no profile serves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs: Option<String>,
    /// The version of TLS: the one in use, or the newest that it offers.
    pub version: String,
    /// The cipher suite in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cipher: Option<String>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// How often.
    pub count: u64,
    /// The first time since the gateway started.
    pub first: Timestamp,
    /// The last time.
    pub last: Timestamp,
}

/// One handshake.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Who.
    pub client: IpAddr,
    /// Where.
    pub listener: String,
    /// What would serve it, if anything.
    pub needs: Option<&'static str>,
    /// The version of TLS.
    pub version: String,
    /// The cipher suite, where it was served.
    pub cipher: Option<String>,
    /// Why it was not.
    pub refused: Option<String>,
}

/// The clients of all listeners. Those that are refused can never drive out those that are served.
#[derive(Debug, Default)]
pub struct Devices {
    served: HashMap<Seen, Count>,
    refused: HashMap<Seen, Count>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    count: u64,
    first: Timestamp,
    last: Timestamp,
}

impl Devices {
    /// Notes a handshake.
    pub fn note(&mut self, seen: Seen, now: Timestamp) {
        let table = match seen.refused {
            None => &mut self.served,
            Some(_) => &mut self.refused,
        };
        if let Some(known) = table.get_mut(&seen) {
            known.count += 1;
            known.last = now;
            return;
        }
        if table.len() >= MAX_DEVICES {
            let oldest = table
                .iter()
                .min_by_key(|(_, it)| it.last)
                .map(|(seen, _)| seen.clone());
            if let Some(oldest) = oldest {
                table.remove(&oldest);
            }
        }
        let new = Count {
            count: 1,
            first: now,
            last: now,
        };
        table.insert(seen, new);
    }

    /// All of them, by address.
    pub fn list(&self) -> Vec<Device> {
        let mut list: Vec<Device> = self
            .served
            .iter()
            .chain(&self.refused)
            .map(|(seen, count)| Device {
                client: seen.client,
                listener: seen.listener.clone(),
                needs: seen.needs.map(str::to_owned),
                version: seen.version.clone(),
                cipher: seen.cipher.clone(),
                refused: seen.refused.clone(),
                count: count.count,
                first: count.first,
                last: count.last,
            })
            .collect();
        list.sort_by(|a, b| (a.client, &a.listener, a.first).cmp(&(b.client, &b.listener, b.first)));
        list
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn seen(client: u32, refused: bool) -> Seen {
        Seen {
            client: Ipv4Addr::from_bits(client).into(),
            listener: "printers".to_owned(),
            needs: Some("legacy"),
            version: "TLSv1.0".to_owned(),
            cipher: (!refused).then(|| "AES128-SHA".to_owned()),
            refused: refused.then(|| "too old".to_owned()),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn counts_by_client_and_what_it_did() {
        let mut devices = Devices::default();
        devices.note(seen(2, false), at(10));
        devices.note(seen(1, true), at(11));
        devices.note(seen(2, false), at(12));
        let list = devices.list();
        let rows: Vec<_> = list
            .iter()
            .map(|it| {
                (
                    it.client.to_string(),
                    it.count,
                    it.first,
                    it.last,
                    it.refused.is_some(),
                )
            })
            .collect();
        assert_eq!(
            rows,
            [
                ("0.0.0.1".to_owned(), 1, at(11), at(11), true),
                ("0.0.0.2".to_owned(), 2, at(10), at(12), false)
            ]
        );
    }

    #[test]
    fn bounded_and_strangers_drive_no_one_out() {
        let mut devices = Devices::default();
        devices.note(seen(0, false), at(0));
        for client in 1..3000 {
            devices.note(seen(client, true), at(client.into()));
        }
        let list = devices.list();
        assert_eq!(list.len(), 1 + MAX_DEVICES);
        assert_eq!(list[0].refused, None);
        assert_eq!(list[1].first, at(2000), "the newest are kept");
    }
}
