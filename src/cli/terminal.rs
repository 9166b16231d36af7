//! Passwords that are typed, and tables that are printed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::{Failure, asks};

/// The longest password taken, in octets.
const MAX_PASSWORD: u64 = 4096;

/// A password: from a file, from the person at the terminal, or else the first line of standard
/// input. Never an argument, which every user of the host could see.
pub(super) fn password(file: Option<&Path>, prompt: &str, twice: bool) -> Result<Zeroizing<String>, Failure> {
    let password = match file {
        Some(path) => {
            let file = File::open(path).map_err(|error| {
                Failure::new(format_args!(
                    "cannot read the password file {}: {error}",
                    path.display()
                ))
            })?;
            first_line(BufReader::new(file))
        }
        None if asks() => typed(prompt),
        None => first_line(io::stdin().lock()),
    }
    .map_err(|error| Failure::new(format_args!("cannot read the password: {error}")))?;
    if twice && file.is_none() && asks() {
        let again = typed("The same again: ")
            .map_err(|error| Failure::new(format_args!("cannot read it: {error}")))?;
        if *again != *password {
            return Err(Failure::new("the two passwords differ; nothing was changed"));
        }
    }
    if password.is_empty() {
        return Err(Failure::with_help(
            "the password is empty",
            "type it, name a file with --password-file, or write it to standard input",
        ));
    }
    Ok(password)
}

/// A line without its end.
fn first_line(input: impl BufRead) -> io::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::new());
    input.take(MAX_PASSWORD).read_line(&mut line)?;
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    Ok(line)
}

/// Asks at the terminal itself, and does not show what is typed.
fn typed(prompt: &str) -> io::Result<Zeroizing<String>> {
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    write!(terminal, "{prompt}")?;
    let silent = Silent::new(terminal.try_clone()?)?;
    let line = first_line(BufReader::new(&terminal));
    drop(silent);
    writeln!(terminal)?;
    line
}

/// A terminal that does not echo, until this is dropped.
struct Silent {
    terminal: File,
    before: Termios,
}

impl Silent {
    fn new(terminal: File) -> io::Result<Silent> {
        let before = tcgetattr(&terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(&terminal, OptionalActions::Flush, &silent)?;
        Ok(Silent { terminal, before })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // There is no one to tell, and a terminal that is gone needs no echo.
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// Text of others, safe for a terminal: what could steer it becomes a visible escape.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // Directional marks can make an address read as another.
        let hidden = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || hidden {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A table with columns as wide as they need to be; the last one is not padded.
pub(super) fn table(out: &mut impl Write, head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|it| it.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(cell);
            let gap = 2 + width - cell.chars().count();
            text.extend(std::iter::repeat_n(' ', gap));
        }
        writeln!(out, "{}", text.trim_end())
    };
    line(&mut head.iter().copied())?;
    rows.iter()
        .try_for_each(|row| line(&mut row.iter().map(String::as_str)))
}

/// `17s`, `4m`, `3h`, `12d`.
pub(super) fn age(seconds: i64) -> String {
    match seconds.max(0) {
        it @ ..100 => format!("{it}s"),
        it @ ..6_000 => format!("{}m", it / 60),
        it @ ..172_800 => format!("{}h", it / 3600),
        it => format!("{}d", it / 86_400),
    }
}

/// `512`, `48K`, `3.4M`, as `ls -h` has it.
pub(super) fn size(octets: u64) -> String {
    const UNITS: [char; 4] = ['K', 'M', 'G', 'T'];
    let mut value = octets as f64;
    let mut unit = None;
    for it in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        unit = Some(it);
    }
    match unit {
        None => format!("{octets}"),
        Some(unit) if value < 10.0 => format!("{value:.1}{unit}"),
        Some(unit) => format!("{value:.0}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        for (octets, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0K"),
            (1536, "1.5K"),
            (100 << 10, "100K"),
            (3_565_158, "3.4M"),
            (u64::MAX, "16777216T"),
        ] {
            assert_eq!(size(octets), text);
        }
        for (seconds, text) in [
            (-5, "0s"),
            (99, "99s"),
            (100, "1m"),
            (5_999, "99m"),
            (7200, "2h"),
            (172_800, "2d"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn what_steers_a_terminal_is_shown() {
        assert_eq!(printable("a\u{1b}[31mb\r\n"), "a\\u{1b}[31mb\\u{d}\\u{a}");
        assert_eq!(printable("erp\u{202e}moc.x"), "erp\\u{202e}moc.x");
        assert_eq!(printable("Grüße"), "Grüße");
    }

    #[test]
    fn a_password_is_one_line() {
        for (input, password) in [("a b\n", "a b"), ("a b", "a b"), ("a\r\nb\n", "a"), ("", "")] {
            assert_eq!(
                first_line(input.as_bytes())
                    .map(|it| it.to_string())
                    .ok()
                    .as_deref(),
                Some(password)
            );
        }
    }
}
