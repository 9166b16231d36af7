//! The file as written: TOML in which everything knows where it stands, overlaid with environment
//! variables. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::finding::{Finding, Place, Severity, is_secret};

/// What all variables that override a key begin with.
const PREFIX: &str = "GRAPHPOST__";

/// How often a broken file is read again without its broken lines.
const MAX_ROUNDS: u32 = 20;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub place: Place,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    String(String),
    Integer(i64),
    Boolean(bool),
    Array(Vec<Item>),
    Table(Table),
    /// What no key of ours takes: its name in the words of TOML.
    Other(&'static str),
    /// From an environment variable, which has no types: whatever the key wants.
    Text(String),
}

impl Value {
    pub fn kind(&self) -> &'static str {
        match self {
            Value::String(_) | Value::Text(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Boolean(_) => "a boolean",
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
            Value::Other(kind) => kind,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub place: Place,
    pub entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Where the key stands.
    pub key: Place,
    pub item: Item,
}

/// A whole document.
pub(super) struct Document {
    pub root: Table,
    /// What the TOML reader did not understand; the rest was recovered as well as it could be.
    pub errors: Vec<Finding>,
    /// The octets that hold secrets.
    pub secrets: Vec<Range<usize>>,
    /// Where each line begins.
    pub line_starts: Vec<usize>,
}

impl Document {
    pub fn parse(source: &str) -> Document {
        let mut readable = source.to_owned();
        let mut errors: Vec<Finding> = Vec::new();
        let mut rounds = 0;
        let table = loop {
            rounds += 1;
            let (table, round) = DeTable::parse_recoverable(&readable);
            let mut lost = Vec::new();
            for error in &round {
                errors.push(syntax_error(source, error));
                // After a line that is no key and value the reader gives up: it reads on without it.
                if (error.message().starts_with("invalid unquoted key")
                    || error.message().starts_with("key with no value"))
                    && let Some(span) = error.span()
                {
                    lost.push(line_around(source, span.start));
                }
            }
            let mut blanked = readable.clone().into_bytes();
            lost.into_iter().for_each(|line| blanked[line].fill(b' '));
            if blanked == readable.as_bytes() || rounds == MAX_ROUNDS {
                let span = table.span();
                let mut secrets = Vec::new();
                break (
                    convert_table(table.into_inner(), Place::File(span), &mut secrets),
                    secrets,
                );
            }
            // Whole lines were blotted out, so what remains is UTF-8.
            readable = String::from_utf8_lossy(&blanked).into_owned();
        };
        // The same error may be met again in each round, and one on a line is enough.
        let mut lines = std::collections::BTreeSet::new();
        errors.retain(|it| match &it.place {
            Place::File(span) => lines.insert(line_around(source, span.start).start),
            _ => true,
        });
        let (root, secrets) = table;
        let newlines = source.match_indices('\n').map(|(at, _)| at + 1);
        Document {
            root,
            errors,
            secrets,
            line_starts: std::iter::once(0).chain(newlines).collect(),
        }
    }

    /// Lays `GRAPHPOST__SECTION__KEY` over the file. Tables that are repeated, `[[listener]]` and
    /// `[[sender]]`, have their number (from 1) after their name: `GRAPHPOST__LISTENER__1__ADDRESS`.
    pub fn overlay<'e>(&mut self, environment: impl Iterator<Item = (&'e str, &'e str)>) -> Vec<Finding> {
        let mut problems = Vec::new();
        let mut variables: Vec<_> = environment.filter(|(name, _)| name.starts_with(PREFIX)).collect();
        // In the order of their numbers, so that LISTENER__2 finds LISTENER__1 in its place.
        variables.sort_by_key(|(name, _)| {
            let steps = name.split("__").map(|it| (it.parse::<u64>().unwrap_or(0), it));
            steps.collect::<Vec<_>>()
        });
        for (name, value) in variables {
            let path = name[PREFIX.len()..].to_ascii_lowercase();
            let steps: Vec<&str> = path.split("__").collect();
            if let Err((title, help)) = set(&mut self.root, &steps, name, value) {
                problems.push(Finding {
                    severity: Severity::Error,
                    title,
                    place: Place::Variable(name.to_owned()),
                    label: String::new(),
                    help: Some(help.to_owned()),
                    context: None,
                });
            }
        }
        problems
    }
}

fn convert_table(table: DeTable<'_>, place: Place, secrets: &mut Vec<Range<usize>>) -> Table {
    let entries = table
        .into_iter()
        .map(|(key, value)| {
            let key_place = Place::File(key.span());
            let key = key.into_inner().into_owned();
            if is_secret(&key) {
                secrets.push(value.span());
            }
            let item = convert(value, secrets);
            (key, Entry { key: key_place, item })
        })
        .collect();
    Table { place, entries }
}

fn convert(value: Spanned<DeValue<'_>>, secrets: &mut Vec<Range<usize>>) -> Item {
    let place = Place::File(value.span());
    let value = match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Other("an integer of more than 64 bits"),
        },
        DeValue::Boolean(it) => Value::Boolean(it),
        DeValue::Float(_) => Value::Other("a number with a fraction"),
        DeValue::Datetime(_) => Value::Other("a date or time"),
        DeValue::Array(items) => Value::Array(items.into_iter().map(|it| convert(it, secrets)).collect()),
        DeValue::Table(table) => Value::Table(convert_table(table, place.clone(), secrets)),
    };
    Item { place, value }
}

type Misplaced = (String, &'static str);

/// Puts the value of a variable where its name says.
fn set(table: &mut Table, steps: &[&str], name: &str, value: &str) -> Result<(), Misplaced> {
    let place = Place::Variable(name.to_owned());
    let [step, rest @ ..] = steps else {
        return Err((
            format!("the environment variable {name} names a table, not a key"),
            "write GRAPHPOST__SECTION__KEY, such as GRAPHPOST__TENANT__CLIENT_ID",
        ));
    };
    if step.is_empty() {
        return set(table, &[], name, value);
    }
    if rest.is_empty() {
        let item = Item {
            place: place.clone(),
            value: Value::Text(value.to_owned()),
        };
        table
            .entries
            .insert((*step).to_owned(), Entry { key: place, item });
        return Ok(());
    }
    let empty = |value| Entry {
        key: place.clone(),
        item: Item {
            place: place.clone(),
            value,
        },
    };
    if let Ok(number) = rest[0].parse::<usize>() {
        let entry = table
            .entries
            .entry((*step).to_owned())
            .or_insert_with(|| empty(Value::Array(Vec::new())));
        let Value::Array(items) = &mut entry.item.value else {
            return Err((
                format!("the environment variable {name} has a number, but '{step}' is no list"),
                "leave the number out",
            ));
        };
        if number == items.len() + 1 {
            items.push(Item {
                place: place.clone(),
                value: Value::Table(Table {
                    place: place.clone(),
                    entries: BTreeMap::new(),
                }),
            });
        }
        return match number.checked_sub(1).and_then(|it| items.get_mut(it)) {
            Some(Item {
                value: Value::Table(table),
                ..
            }) => set(table, &rest[1..], name, value),
            _ => Err((
                format!(
                    "the environment variable {name} speaks of number {number}, and there is none before it"
                ),
                "numbers begin at 1 and follow one another",
            )),
        };
    }
    let entry = table.entries.entry((*step).to_owned()).or_insert_with(|| {
        empty(Value::Table(Table {
            place: place.clone(),
            entries: BTreeMap::new(),
        }))
    });
    match &mut entry.item.value {
        Value::Table(inner) => set(inner, rest, name, value),
        Value::Array(_) => Err((
            format!("the environment variable {name} lacks a number: there may be several '{step}'"),
            "write GRAPHPOST__LISTENER__1__ADDRESS for the first listener's address",
        )),
        _ => Err((
            format!("the environment variable {name} goes deeper than '{step}', which is a single value"),
            "write GRAPHPOST__SECTION__KEY, such as GRAPHPOST__TENANT__CLIENT_ID",
        )),
    }
}

/// The octets of the line around `at`, without its end.
fn line_around(source: &str, at: usize) -> Range<usize> {
    let at = source.floor_char_boundary(at.min(source.len()));
    let start = source[..at].rfind('\n').map_or(0, |it| it + 1);
    let end = source[at..].find(['\r', '\n']).map_or(source.len(), |it| at + it);
    start..end
}

fn syntax_error(source: &str, error: &toml::de::Error) -> Finding {
    let message = error.message().lines().next().unwrap_or_default();
    let span = error.span();
    let duplicate = message.starts_with("duplicate key");
    let text = span.clone().and_then(|it| source.get(it)).unwrap_or_default();
    Finding {
        severity: Severity::Error,
        title: match duplicate {
            true => format!(
                "'{}' stands here for the second time",
                text.lines().next().unwrap_or_default()
            ),
            false => format!("this is not TOML: {message}"),
        },
        help: match (duplicate, &span) {
            (false, Some(span)) => help_for(&source[line_around(source, span.start)], message),
            _ => None,
        },
        place: span.map_or(Place::Whole, Place::File),
        label: String::new(),
        context: None,
    }
}

/// The commonest ways to break a TOML file, recognised by the line.
fn help_for(line: &str, message: &str) -> Option<String> {
    let line = line.trim();
    let (key, value) = line.split_once('=').unwrap_or((line, ""));
    if value.contains('\\') && value.trim_start().starts_with('"') {
        return Some("write Windows paths in single quotes: 'C:\\graphpost\\app.pfx'".to_owned());
    }
    if !line.contains('=') && line.contains(':') && !line.starts_with('[') {
        return Some("keys and values are joined by '=', not ':'".to_owned());
    }
    message
        .starts_with("string values must be quoted")
        .then(|| format!("texts are in quotes: {} = \"…\"", key.trim()))
}
