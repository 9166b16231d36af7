//! Reads a document table by table and key by key, and collects what is wrong on the way. What no
//! one asked for in the end is an unknown key. Pure.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::document::{Entry, Item, Table, Value};
use super::finding::{Finding, Place, Severity};
use super::value::{self, Problem};

/// The longest duration taken. Far beyond any sense, and far from where clocks overflow.
const TEN_YEARS: Duration = Duration::from_secs(3653 * 86_400);

/// What all sections of one document report to.
#[derive(Default)]
pub(super) struct Reader {
    findings: RefCell<Vec<Finding>>,
    /// Every key that was asked for, by section.
    known: RefCell<BTreeMap<String, BTreeSet<&'static str>>>,
    /// The document was not wholly understood, so that what is missing in it may be there.
    damaged: bool,
}

/// A value, where it stands, and the full name of its key.
#[derive(Clone, Debug)]
pub(super) struct Spot<T> {
    pub value: T,
    pub place: Place,
    pub key: String,
}

impl<T> Spot<T> {
    /// This spot with something else made of its value.
    pub fn with<U>(&self, value: U) -> Spot<U> {
        Spot {
            value,
            place: self.place.clone(),
            key: self.key.clone(),
        }
    }
}

impl Reader {
    pub fn new(damaged: bool) -> Reader {
        Reader {
            damaged,
            ..Reader::default()
        }
    }

    pub fn push(&self, finding: Finding) {
        self.findings.borrow_mut().push(finding);
    }

    /// Reports a value that is wrong in itself.
    pub fn problem(&self, key: &str, place: Place, problem: Problem) {
        self.push(Finding {
            severity: Severity::Error,
            title: format!("{key} {}", problem.title),
            place,
            label: problem.label,
            help: problem.help,
            context: None,
        });
    }

    pub fn error(
        &self,
        place: &Place,
        title: impl Into<String>,
        label: &str,
        help: impl Into<Option<String>>,
    ) {
        self.push(Finding {
            severity: Severity::Error,
            title: title.into(),
            place: place.clone(),
            label: label.to_owned(),
            help: help.into(),
            context: None,
        });
    }

    pub fn warning(
        &self,
        place: &Place,
        title: impl Into<String>,
        label: &str,
        help: impl Into<Option<String>>,
    ) {
        self.push(Finding {
            severity: Severity::Warning,
            title: title.into(),
            place: place.clone(),
            label: label.to_owned(),
            help: help.into(),
            context: None,
        });
    }

    /// Reports what is not there. Not in a damaged document, where it may be in the damaged part.
    pub fn missing(
        &self,
        place: &Place,
        title: impl Into<String>,
        label: &str,
        help: impl Into<Option<String>>,
    ) {
        if !self.damaged {
            self.error(place, title, label, help);
        }
    }

    /// All that was found, and every key by section.
    pub fn finish(self) -> (Vec<Finding>, BTreeMap<String, BTreeSet<&'static str>>) {
        (self.findings.into_inner(), self.known.into_inner())
    }
}

/// One table of the document, or the place where it would be.
pub(super) struct Section<'d> {
    reader: &'d Reader,
    /// As in messages: `listener[2]`.
    name: String,
    /// As in [`Reader::known`]: `listener`.
    kind: String,
    table: Option<&'d Table>,
    /// Its header.
    pub place: Place,
    asked: Vec<&'static str>,
    /// There is something else in its place, which has been reported; so nothing is missing in it.
    misplaced: bool,
}

impl<'d> Section<'d> {
    pub fn root(reader: &'d Reader, table: &'d Table) -> Section<'d> {
        Section {
            reader,
            name: String::new(),
            kind: String::new(),
            table: Some(table),
            place: Place::Whole,
            asked: Vec::new(),
            misplaced: false,
        }
    }

    /// The full name of a key.
    pub fn key(&self, key: &str) -> String {
        match self.name.as_str() {
            "" => key.to_owned(),
            name => format!("{name}.{key}"),
        }
    }

    fn header(&self) -> String {
        if self.name == self.kind {
            format!("[{}]", self.kind)
        } else {
            format!("[[{}]]", self.kind)
        }
    }

    fn entry(&mut self, key: &'static str) -> Option<&'d Entry> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.reader
            .known
            .borrow_mut()
            .entry(self.kind.clone())
            .or_default()
            .insert(key);
        self.table?.entries.get(key)
    }

    /// Whether a key is there, wrong or right.
    pub fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|it| it.entries.contains_key(key))
    }

    /// Whether a key is there and says just this.
    pub fn says(&self, key: &str, text: &str) -> bool {
        let entry = self.table.and_then(|it| it.entries.get(key));
        entry.is_some_and(|it| as_text(&it.item.value).is_ok_and(|it| it == text))
    }

    /// A table within this one.
    pub fn section(&mut self, key: &'static str) -> Section<'d> {
        let kind = if self.kind.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.kind)
        };
        let (table, place) = match self.entry(key) {
            None => (None, self.place.clone()),
            Some(Entry {
                item:
                    Item {
                        value: Value::Table(table),
                        ..
                    },
                ..
            }) => (Some(table), table.place.clone()),
            Some(entry) => {
                let expected = format!("expected a table: [{kind}]");
                let title = format!("is {}", entry.item.value.kind());
                self.reader.problem(
                    &self.key(key),
                    entry.item.place.clone(),
                    Problem::new(title, expected),
                );
                (None, entry.item.place.clone())
            }
        };
        self.reader.known.borrow_mut().entry(kind.clone()).or_default();
        Section {
            reader: self.reader,
            name: self.key(key),
            kind,
            table,
            place,
            asked: Vec::new(),
            misplaced: self.misplaced || (table.is_none() && self.has(key)),
        }
    }

    /// Tables of one name, `[[listener]]`.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section<'d>> {
        let Some(entry) = self.entry(key) else {
            return Vec::new();
        };
        let kind = match self.kind.as_str() {
            "" => key.to_owned(),
            kind => format!("{kind}.{key}"),
        };
        let wrong = |item: &Item| {
            let label = format!("expected [[{kind}]], in double brackets");
            let problem = Problem::new(
                format!("is {}, but there may be several", item.value.kind()),
                label,
            );
            self.reader.problem(key, item.place.clone(), problem);
        };
        let Value::Array(items) = &entry.item.value else {
            wrong(&entry.item);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (at, item) in items.iter().enumerate() {
            match &item.value {
                Value::Table(table) => sections.push(Section {
                    reader: self.reader,
                    name: format!("{}[{}]", self.key(key), at + 1),
                    kind: kind.clone(),
                    table: Some(table),
                    place: table.place.clone(),
                    asked: Vec::new(),
                    misplaced: false,
                }),
                _ => wrong(item),
            }
        }
        sections
    }

    fn take<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Result<T, Problem>,
    ) -> Option<Spot<T>> {
        let entry = self.entry(key)?;
        let key = self.key(key);
        match parse(&entry.item.value) {
            Ok(value) => Some(Spot {
                value,
                place: entry.item.place.clone(),
                key,
            }),
            Err(problem) => {
                self.reader.problem(&key, entry.item.place.clone(), problem);
                None
            }
        }
    }

    /// A text, and what `parse` makes of it.
    pub fn text<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Option<Spot<T>> {
        self.take(key, |value| parse(as_text(value)?))
    }

    /// A text as it stands.
    pub fn string(&mut self, key: &'static str) -> Option<Spot<String>> {
        self.text(key, |text| match text.trim() {
            "" => {
                Err(Problem::new("is empty", "expected a value").help("leave the key out if there is none"))
            }
            _ => Ok(text.to_owned()),
        })
    }

    /// Texts in an array, at least one; one alone needs no brackets.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Spot<Vec<Spot<T>>>> {
        let list = self.list_or_none(key, parse)?;
        // Empty could be read as "none" or as "all".
        if let Some(Value::Array(items)) = self
            .table
            .and_then(|it| it.entries.get(key))
            .map(|it| &it.item.value)
            && items.is_empty()
        {
            let problem = Problem::new("is empty", "expected at least one")
                .help("leave the key out if it is not needed");
            self.reader.problem(&list.key, list.place, problem);
            return None;
        }
        Some(list)
    }

    /// Texts in an array, or an empty one.
    pub fn list_or_none<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Spot<Vec<Spot<T>>>> {
        let entry = self.entry(key)?;
        let key = self.key(key);
        let from_variable;
        let items: &[Item] = match &entry.item.value {
            Value::Array(items) => items,
            // A variable holds several, apart by commas.
            Value::Text(text) => {
                let text = text.trim();
                let text = text
                    .strip_prefix('[')
                    .and_then(|it| it.strip_suffix(']'))
                    .unwrap_or(text);
                from_variable = text
                    .split(',')
                    .map(|it| it.trim().trim_matches(['"', '\'']))
                    .filter(|it| !it.is_empty())
                    .map(|it| Item {
                        place: entry.item.place.clone(),
                        value: Value::String(it.to_owned()),
                    })
                    .collect::<Vec<_>>();
                &from_variable
            }
            _ => std::slice::from_ref(&entry.item),
        };
        let mut values = Vec::new();
        for item in items {
            match as_text(&item.value).and_then(&parse) {
                Ok(value) => values.push(Spot {
                    value,
                    place: item.place.clone(),
                    key: key.clone(),
                }),
                Err(problem) => self.reader.problem(&key, item.place.clone(), problem),
            }
        }
        Some(Spot {
            value: values,
            place: entry.item.place.clone(),
            key,
        })
    }

    /// One of several words.
    pub fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<Spot<T>> {
        self.text(key, |text| {
            let found = words
                .iter()
                .find(|(word, _)| word.eq_ignore_ascii_case(text.trim()));
            found.map(|(_, it)| *it).ok_or_else(|| {
                let all: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
                let problem = Problem::new(
                    format!("does not know '{}'", shorten(text)),
                    format!("expected {}", or(&all)),
                );
                match nearest(text, words.iter().map(|(word, _)| *word)) {
                    Some(word) => problem.help(format!("did you mean \"{word}\"?")),
                    None => problem,
                }
            })
        })
    }

    pub fn boolean(&mut self, key: &'static str) -> Option<Spot<bool>> {
        self.take(key, |value| match value {
            Value::Boolean(it) => Ok(*it),
            Value::Text(text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Value::Text(text) if text.eq_ignore_ascii_case("false") => Ok(false),
            Value::String(text) if matches!(text.as_str(), "true" | "false") => Err(Problem::new(
                "is a string",
                format!("expected {text}, without quotes"),
            )),
            other => Err(Problem::new(
                format!("is {}", other.kind()),
                "expected true or false",
            )),
        })
    }

    /// A number within limits, or the default.
    pub fn number(&mut self, key: &'static str, default: u64, limits: RangeInclusive<u64>) -> u64 {
        let number = self.take(key, |value| {
            let number = match value {
                Value::Integer(number) => *number,
                Value::Text(text) | Value::String(text) => text
                    .trim()
                    .parse()
                    .map_err(|_| Problem::new("is not a number", "expected an integer"))?,
                other => {
                    return Err(Problem::new(
                        format!("is {}", other.kind()),
                        "expected an integer",
                    ));
                }
            };
            within(u64::try_from(number).ok(), &limits)
        });
        number.map_or(default, |it| it.value)
    }

    /// A number of octets, `"4MB"` or an integer, or the default.
    pub fn size(&mut self, key: &'static str, default: u64, least: u64) -> Spot<u64> {
        let size = self.take(key, |value| {
            let size = match value {
                Value::Integer(number) => u64::try_from(*number).ok(),
                other => Some(value::size(as_text(other)?)?),
            };
            within(size, &(least..=i64::MAX as u64))
        });
        size.unwrap_or_else(|| self.absent(key, default))
    }

    /// A duration, `"15m"`, or the default.
    pub fn duration(&mut self, key: &'static str, default: Duration, least: Duration) -> Spot<Duration> {
        let duration = self.take(key, |it| {
            if let Value::Integer(number) = it {
                let label = format!("expected a unit, e.g. \"{number}s\" for seconds");
                return Err(Problem::new("is a number without a unit", label));
            }
            let duration = value::duration(as_text(it)?)?;
            if duration < least {
                let least = jiff::SignedDuration::try_from(least).unwrap_or_default();
                return Err(Problem::new(
                    "is too short",
                    format!("expected at least \"{least:#}\""),
                ));
            }
            if duration > TEN_YEARS {
                return Err(Problem::new("is too long", "expected less than ten years"));
            }
            Ok(duration)
        });
        duration.unwrap_or_else(|| self.absent(key, default))
    }

    fn absent<T>(&self, key: &str, value: T) -> Spot<T> {
        Spot {
            value,
            place: self.place.clone(),
            key: self.key(key),
        }
    }

    /// Reports a key that must be there and is not; one that is there and wrong has been reported.
    pub fn require<T>(
        &self,
        key: &str,
        value: Option<Spot<T>>,
        example: &str,
        help: &str,
    ) -> Option<Spot<T>> {
        if value.is_none() && !self.has(key) && !self.misplaced {
            let label = format!("expected {key} = {example} in {}", self.header());
            let help = (!help.is_empty()).then(|| help.to_owned());
            self.reader
                .missing(&self.place, format!("{} is missing", self.key(key)), &label, help);
        }
        value
    }

    /// Reports keys that no one asked for.
    pub fn finish(self) {
        let Some(table) = self.table else { return };
        for (key, entry) in &table.entries {
            if self.asked.contains(&key.as_str()) {
                continue;
            }
            let inside = if self.kind.is_empty() {
                String::new()
            } else {
                format!(" in {}", self.header())
            };
            let help = match nearest(key, self.asked.iter().copied()) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("known here are {}", self.asked.join(", ")),
            };
            let title = format!("unknown key '{}'{inside}", shorten(key));
            self.reader.error(&entry.key, title, "", help);
        }
    }
}

fn as_text(value: &Value) -> Result<&str, Problem> {
    match value {
        Value::String(text) | Value::Text(text) => Ok(text),
        other => Err(Problem::new(
            format!("is {}", other.kind()),
            "expected a string, in quotes",
        )),
    }
}

fn within(number: Option<u64>, limits: &RangeInclusive<u64>) -> Result<u64, Problem> {
    match number {
        Some(number) if limits.contains(&number) => Ok(number),
        Some(number) if number > *limits.end() => Err(Problem::new(
            "is too large",
            format!("expected at most {}", limits.end()),
        )),
        _ => Err(Problem::new(
            "is too small",
            format!("expected at least {}", limits.start()),
        )),
    }
}

/// `a`, `a or b`, `a, b or c`.
fn or(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// A key or word short enough for a title.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// The known word that was probably meant.
fn nearest<'w>(word: &str, known: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let word = word.to_lowercase().replace('-', "_");
    known
        .map(|it| (strsim::jaro_winkler(&word, &it.replace('-', "_")), it))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, it)| it)
}
