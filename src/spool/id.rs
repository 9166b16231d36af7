//! The number of a message in the queue, and how it is written.

use std::fmt;
use std::str::FromStr;

/// A message's number in the queue: never reused, and the name of its content file.
///
/// Written as eight characters of Crockford's base 32, which sorts by age and has no letters to
/// mistake for digits. Reading takes lower case, `O` for 0, `I` and `L` for 1, and fewer characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub(crate) i64);

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const WIDTH: usize = 8;

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 13 characters hold 64 bits; all but the last eight are left out while they are zero.
        let digits: Vec<u8> = (0..13)
            .rev()
            .map(|place| ALPHABET[(self.0 >> (5 * place)) as usize & 31])
            .collect();
        let first = digits
            .iter()
            .position(|&it| it != b'0')
            .unwrap_or(13)
            .min(13 - WIDTH);
        for &digit in &digits[first..] {
            write!(f, "{}", digit as char)?;
        }
        Ok(())
    }
}

/// A text that is no queue id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAQueueId(pub String);

impl fmt::Display for NotAQueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is no queue id; ids look like 0000004F and are shown by 'graphpost queue list'",
            self.0
        )
    }
}

impl std::error::Error for NotAQueueId {}

impl FromStr for QueueId {
    type Err = NotAQueueId;

    fn from_str(text: &str) -> Result<Self, NotAQueueId> {
        let bad = || NotAQueueId(text.chars().take(40).collect());
        if text.is_empty() || text.len() > 12 {
            return Err(bad());
        }
        text.bytes()
            .try_fold(0i64, |number, byte| {
                let digit = match byte.to_ascii_uppercase() {
                    b'O' => 0,
                    b'I' | b'L' => 1,
                    byte => ALPHABET.iter().position(|&it| it == byte)?,
                };
                Some(number << 5 | digit as i64)
            })
            .map(QueueId)
            .ok_or_else(bad)
    }
}

impl<'de> serde::Deserialize<'de> for QueueId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for QueueId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_is_written() {
        for number in [0, 1, 31, 32, 1_000_000, (1 << 40) - 1, 1 << 40, (1 << 59) + 7] {
            let text = QueueId(number).to_string();
            assert_eq!(text.parse(), Ok(QueueId(number)), "{text}");
        }
        assert_eq!(QueueId(37).to_string(), "00000015");
        assert_eq!("15".parse(), Ok(QueueId(37)));
        assert_eq!("oi".parse(), Ok(QueueId(1)));
    }

    #[test]
    fn sorts_by_age() {
        assert!(QueueId(31).to_string() < QueueId(32).to_string());
    }

    #[test]
    fn refuses_other_text() {
        for text in ["", "U", "-1", "ZZZZZZZZZZZZZ", "1 2", "é"] {
            assert!(text.parse::<QueueId>().is_err(), "{text}");
        }
    }
}
