//! What is wrong with a configuration, and where: shown the way a compiler shows it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

/// Whether the gateway can run with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, but is perhaps not what was meant.
    Warning,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// These octets of the file.
    File(Range<usize>),
    /// An environment variable.
    Variable(String),
    /// The file as a whole: something is not there.
    Whole,
}

/// One thing that is wrong, or looks wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether the gateway can run with it.
    pub severity: Severity,
    /// What is wrong, naming the key.
    pub title: String,
    /// Where.
    pub place: Place,
    /// What was expected there; may be empty.
    pub label: String,
    /// What to do.
    pub help: Option<String>,
    /// Another place that has to do with it, and how.
    pub context: Option<(Place, String)>,
}

/// All findings about one configuration, in the order of the file.
#[derive(Clone, Debug)]
pub struct Findings {
    path: String,
    /// The file with its secrets blotted out; octet for octet as long as the file.
    source: Arc<str>,
    list: Vec<Finding>,
}

impl Findings {
    /// Sorts `list` by place. `secrets` are the octets of `source` that must never be shown.
    pub(super) fn new(
        path: String,
        source: &str,
        secrets: &[Range<usize>],
        mut list: Vec<Finding>,
    ) -> Findings {
        list.sort_by_key(|it| match &it.place {
            Place::File(span) => (0, span.start, String::new()),
            Place::Variable(name) => (1, 0, name.clone()),
            Place::Whole => (2, 0, String::new()),
        });
        list.dedup();
        Findings {
            path,
            source: blot(source, secrets).into(),
            list,
        }
    }

    /// Errors about the file itself, which could not be read.
    pub(super) fn unreadable(path: String, title: String, help: String) -> Findings {
        let finding = Finding {
            severity: Severity::Error,
            title,
            place: Place::Whole,
            label: String::new(),
            help: Some(help),
            context: None,
        };
        Findings::new(path, "", &[], vec![finding])
    }

    /// Parts errors from warnings.
    pub(super) fn partition(self) -> (Findings, Findings) {
        let (errors, warnings) = self
            .list
            .into_iter()
            .partition(|it| it.severity == Severity::Error);
        let part = |list| Findings {
            path: self.path.clone(),
            source: self.source.clone(),
            list,
        };
        (part(errors), part(warnings))
    }

    /// The file the findings are about.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The findings one by one.
    pub fn iter(&self) -> std::slice::Iter<'_, Finding> {
        self.list.iter()
    }

    /// The line of the file that a finding begins on, counted from 1.
    pub fn line(&self, finding: &Finding) -> Option<usize> {
        match &finding.place {
            Place::File(span) => Some(line_of(&self.source, span.start)),
            Place::Variable(_) | Place::Whole => None,
        }
    }

    /// The findings as text for a terminal or a file, with an empty line between two.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        }
        .decor_style(DecorStyle::Ascii);
        let parts: Vec<String> = self
            .list
            .iter()
            .map(|it| self.render_one(&renderer, it))
            .collect();
        parts.join("\n\n")
    }

    fn render_one(&self, renderer: &Renderer, finding: &Finding) -> String {
        let level = match finding.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = level
            .primary_title(clean(&finding.title))
            .elements(Vec::<Origin<'_>>::new());
        group = match &finding.place {
            Place::File(span) => {
                let label = (!finding.label.is_empty()).then(|| clean(&finding.label));
                let mut snippet = Snippet::source(&*self.source)
                    .path(self.path.as_str())
                    .annotation(AnnotationKind::Primary.span(self.visible(span)).label(label));
                if let Some((Place::File(other), text)) = &finding.context {
                    let other = AnnotationKind::Context.span(self.visible(other));
                    snippet = snippet.annotation(other.label(clean(text)));
                }
                group.element(snippet)
            }
            Place::Variable(name) => {
                let group = group.element(Origin::path(format!("environment variable {name}")));
                self.note(group, &finding.label)
            }
            Place::Whole => {
                let group = group.element(Origin::path(self.path.as_str()));
                self.note(group, &finding.label)
            }
        };
        match &finding.help {
            Some(help) => {
                renderer.render(&[group, Group::with_title(Level::HELP.secondary_title(clean(help)))])
            }
            None => renderer.render(&[group]),
        }
    }

    fn note<'a>(&self, group: Group<'a>, text: &str) -> Group<'a> {
        if text.is_empty() {
            return group;
        }
        group.element(Level::NOTE.no_name().message(clean(text)))
    }

    /// The span within the source, on character boundaries and on its first line only: a value of many
    /// lines is pointed at where it begins.
    fn visible(&self, span: &Range<usize>) -> Range<usize> {
        let source = &*self.source;
        let start = source.floor_char_boundary(span.start.min(source.len()));
        let end = source.ceil_char_boundary(span.end.clamp(start, source.len()));
        let line_end = source[start..]
            .find(['\r', '\n'])
            .map_or(source.len(), |it| start + it);
        start..end.min(line_end).max(start)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// All that is wrong with a configuration, not just the first thing.
#[derive(Clone, Debug)]
pub struct ConfigErrors(pub(super) Findings);

impl ConfigErrors {
    /// The errors one by one.
    pub fn findings(&self) -> &Findings {
        &self.0
    }

    /// The errors as text, with their number at the end.
    pub fn render(&self, colour: bool) -> String {
        let number = match self.0.list.len() {
            1 => "1 error".to_owned(),
            number => format!("{number} errors"),
        };
        format!(
            "{}\n\n{number} in the configuration {}",
            self.0.render(colour),
            self.0.path
        )
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for ConfigErrors {}

/// The line that an octet stands on, counted from 1.
pub(super) fn line_of(source: &str, at: usize) -> usize {
    1 + source.as_bytes()[..at.min(source.len())]
        .iter()
        .filter(|&&it| it == b'\n')
        .count()
}

/// Text that may come from anywhere, without control characters that could steer a terminal.
fn clean(text: &str) -> Cow<'static, str> {
    Cow::Owned(
        text.chars()
            .map(|c| {
                if c.is_control() && c != '\n' {
                    '\u{FFFD}'
                } else {
                    c
                }
            })
            .collect(),
    )
}

/// Whether a key names a secret, perhaps misspelt. `password_file` names a file, and may be shown.
pub(super) fn is_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    let secret = ["pass", "pwd", "secret", "token"]
        .iter()
        .any(|it| key.contains(it));
    // Whoever has a webhook's address can often post to it.
    let secret = secret || key == "webhook_url";
    !key.ends_with("_file") && (secret || strsim::damerau_levenshtein(&key, "password") <= 3)
}

/// Blots out, octet by octet, what must not be shown: the given spans; whatever follows a secret's
/// key on its line, for the file may be too broken to know values from keys; and the user part of URLs.
fn blot(source: &str, secrets: &[Range<usize>]) -> String {
    let mut shown = source.as_bytes().to_vec();
    let mut hide = |span: Range<usize>| {
        for octet in shown.iter_mut().take(span.end).skip(span.start) {
            if !matches!(octet, b'"' | b'\'' | b'\r' | b'\n') {
                *octet = b'*';
            }
        }
    };
    secrets.iter().cloned().for_each(&mut hide);

    let mut at = 0;
    for line in source.split_inclusive('\n') {
        let comment = line.trim_start().starts_with('#');
        if !comment {
            for (equals, _) in line.match_indices('=') {
                let key = line[..equals].trim_end().trim_end_matches(['"', '\'']);
                let key = key
                    .rsplit(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'))
                    .next();
                if key.is_some_and(is_secret) {
                    let value = line[equals + 1..].trim_start();
                    hide(at + line.len() - value.len()..at + line.len());
                    break;
                }
            }
            for (scheme, _) in line.match_indices("://") {
                let rest = &line[scheme + 3..];
                let host = rest.find(['/', '"', '\'', ' ']).unwrap_or(rest.len());
                if let Some(user) = rest[..host].rfind('@') {
                    hide(at + scheme + 3..at + scheme + 3 + user);
                }
            }
        }
        at += line.len();
    }
    // Whole characters are blotted out, and what replaces them is ASCII.
    String::from_utf8_lossy(&shown).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_blotted_out() {
        for (source, shown) in [
            ("password = \"hunter2\"\n", "password = \"*******\"\n"),
            ("pasword=hünter2", "pasword=********"),
            (
                "x = { certificate = \"a\", passphrase = 'b' }",
                "x = { certificate = \"a\", passphrase = '*'**",
            ),
            ("password_file = \"a.password\"", "password_file = \"a.password\""),
            (
                "client_secret = \"\"\"\r\nabc\"\"\"",
                "client_secret = \"\"\"\r\nabc\"\"\"",
            ),
            ("# password = \"example\"", "# password = \"example\""),
            (
                "proxy = \"http://user:pass@proxy:8080/\"",
                "proxy = \"http://*********@proxy:8080/\"",
            ),
        ] {
            assert_eq!(blot(source, &[]), shown);
            assert_eq!(blot(source, &[]).len(), source.len(), "{source}");
        }
        let source = "client_secret = \"\"\"\r\nabc\"\"\"";
        let value = 16..27;
        assert_eq!(
            blot(source, std::slice::from_ref(&value)),
            "client_secret = \"\"\"\r\n***\"\"\""
        );
    }
}
