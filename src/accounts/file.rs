//! The users file: one account a line, `name:hash` or `name:hash:networks`. The hash is argon2's own
//! notation (`$argon2id$v=19$m=19456,t=2,p=1$salt$hash`), or bcrypt's as `htpasswd -B` writes it, or
//! `{cram-md5}` and the password in base64. The networks, separated by commas, are those that the
//! account may be used from. Empty lines and lines that begin with `#` are comments.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use argon2::{Argon2, PasswordHash, PasswordHasher};
use ipnet::IpNet;

use super::verifier::{self, Verifier};

/// The longest account name, in octets.
const MAX_NAME_OCTETS: usize = 256;

/// A line of the file.
#[derive(Debug)]
pub(super) struct Entry {
    /// In lower case.
    pub(super) name: String,
    pub(super) verifier: Verifier,
    /// Where it may be used from; empty is anywhere.
    pub(super) networks: Vec<IpNet>,
    /// Counted from 1.
    line: usize,
}

/// Why the users file cannot be used or changed.
#[derive(Debug)]
pub enum AccountsError {
    /// It cannot be read or written.
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// Lines that are no accounts, by their numbers. The whole file is refused: an account that is
    /// silently missing is an application that silently cannot send.
    Lines {
        /// The file.
        path: PathBuf,
        /// Line number, counted from 1, and what is wrong with it.
        faults: Vec<(usize, Fault)>,
    },
    /// A name that cannot stand in the file.
    Name(Fault),
    /// An empty password, or one that argon2 cannot take.
    Password,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No colon.
    NoColon,
    /// No name before the colon, or one that is too long or has characters that cannot be in it.
    Name,
    /// The hash is none.
    Hash,
    /// After the hash there is something that is no network.
    Network(String),
    /// The hash is of another kind.
    Algorithm(String),
    /// The hash asks for more memory or time than a check may take.
    Cost,
    /// The name is on an earlier line already.
    Twice(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NoColon => f.write_str("expected 'name:hash'"),
            Fault::Name => write!(
                f,
                "an account name has 1 to {MAX_NAME_OCTETS} octets, no colon or control character, \
                 no blank at either end, and no '#' at its beginning"
            ),
            Fault::Hash => f.write_str(
                "expected a hash like '$argon2id$v=19$m=19456,t=2,p=1$…' or, of bcrypt, '$2y$10$…'",
            ),
            Fault::Network(text) => {
                write!(
                    f,
                    "'{text}' is no network; expected networks like 10.1.0.0/16, separated by commas"
                )
            }
            Fault::Algorithm(name) => {
                write!(
                    f,
                    "the hash is {name}, expected argon2id or bcrypt; set it anew with 'graphpost user add'"
                )
            }
            Fault::Cost => f.write_str("the hash asks for more memory or time than a login may take"),
            Fault::Twice(line) => write!(f, "the account is already on line {line}"),
        }
    }
}

impl fmt::Display for AccountsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AccountsError::Io { doing, path, error } => {
                write!(f, "cannot {doing} the users file {}: {error}", path.display())
            }
            AccountsError::Lines { path, faults } => {
                for (number, (line, fault)) in faults.iter().enumerate() {
                    let end = if number + 1 < faults.len() { "\n" } else { "" };
                    write!(f, "{}:{line}: {fault}{end}", path.display())?;
                }
                Ok(())
            }
            AccountsError::Name(fault) => fault.fmt(f),
            AccountsError::Password => f.write_str("the password is empty"),
        }
    }
}

impl std::error::Error for AccountsError {}

/// What adding an account did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// There is one account more.
    New,
    /// The account was there, and has another password now.
    PasswordChanged,
}

pub(super) fn read(path: &Path) -> Result<String, AccountsError> {
    fs::read_to_string(path).map_err(failed("read", path))
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> AccountsError + use<'a> {
    move |error| AccountsError::Io {
        doing,
        path: path.to_owned(),
        error,
    }
}

/// All accounts in the order of the file, or all that is wrong with it.
pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<Entry>, AccountsError> {
    let mut entries = Vec::new();
    let mut faults = Vec::new();
    let mut lines_by_name = HashMap::new();
    for (line, content) in text.lines().enumerate().map(|(index, it)| (index + 1, it)) {
        match entry(line, content) {
            Ok(None) => {}
            Ok(Some(entry)) => match lines_by_name.insert(entry.name.clone(), line) {
                Some(earlier) => faults.push((line, Fault::Twice(earlier))),
                None => entries.push(entry),
            },
            Err(fault) => faults.push((line, fault)),
        }
    }
    if faults.is_empty() {
        Ok(entries)
    } else {
        Err(AccountsError::Lines {
            path: path.to_owned(),
            faults,
        })
    }
}

fn entry(line: usize, content: &str) -> Result<Option<Entry>, Fault> {
    let content = content.trim();
    if content.is_empty() || content.starts_with('#') {
        return Ok(None);
    }
    let (name, rest) = content.split_once(':').ok_or(Fault::NoColon)?;
    check_name(name)?;
    // No hash has a colon. An IPv6 network has some.
    let (hash, allowed) = rest.split_once(':').unwrap_or((rest, ""));
    Ok(Some(Entry {
        name: name.to_lowercase(),
        verifier: Verifier::parse(hash)?,
        networks: networks(allowed)?,
        line,
    }))
}

fn check_name(name: &str) -> Result<(), Fault> {
    let good = !name.is_empty()
        && name.len() <= MAX_NAME_OCTETS
        && name.trim() == name
        && !name.starts_with('#')
        && !name.contains(|c: char| c == ':' || c.is_control());
    if good { Ok(()) } else { Err(Fault::Name) }
}

fn networks(text: &str) -> Result<Vec<IpNet>, Fault> {
    text.split(',')
        .map(str::trim)
        .filter(|it| !it.is_empty())
        .map(|it| {
            let network = it.parse().or_else(|_| it.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| Fault::Network(it.chars().take(50).collect()))
        })
        .collect()
}

/// The names of all accounts, in the order of the file. Blocking.
///
/// # Errors
/// Where the file cannot be read or understood.
pub fn list(path: &Path) -> Result<Vec<String>, AccountsError> {
    Ok(parse(path, &read(path)?)?.into_iter().map(|it| it.name).collect())
}

/// An account to be written.
#[derive(Clone, Copy)]
pub struct Account<'a> {
    /// Its name; case does not matter.
    pub name: &'a str,
    /// Its password.
    pub password: &'a [u8],
    /// Keep the password itself rather than a hash: CRAM-MD5 needs it. Whoever reads the file has it.
    pub recoverable: bool,
    /// Where it may be used from; none leaves that as it is, which for a new account is anywhere.
    pub networks: Option<&'a [IpNet]>,
}

/// Adds an account with a hash, or gives one another password; makes the file if there is none.
/// Blocking.
///
/// # Errors
/// As [`add_account`].
pub fn add(path: &Path, name: &str, password: &[u8]) -> Result<Added, AccountsError> {
    let account = Account {
        name,
        password,
        recoverable: false,
        networks: None,
    };
    add_account(path, &account)
}

/// Adds an account, or replaces it; makes the file if there is none. Comments and order are kept.
/// Blocking.
///
/// # Errors
/// Where the file cannot be read, understood or written. It is then as it was.
pub fn add_account(path: &Path, account: &Account<'_>) -> Result<Added, AccountsError> {
    let Account {
        name,
        password,
        recoverable,
        networks,
    } = *account;
    check_name(name).map_err(AccountsError::Name)?;
    if password.is_empty() {
        return Err(AccountsError::Password);
    }
    let secret = if recoverable {
        verifier::recoverable(password)
    } else {
        let hash: PasswordHash = Argon2::default()
            .hash_password(password)
            .map_err(|_| AccountsError::Password)?;
        hash.to_string()
    };
    edit(path, |entries, lines| {
        let before = entries.iter().find(|it| it.name == name.to_lowercase());
        let networks = networks
            .or(before.map(|it| it.networks.as_slice()))
            .unwrap_or_default();
        let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
        let end = if networks.is_empty() {
            String::new()
        } else {
            format!(":{}", networks.join(","))
        };
        let line = format!("{name}:{secret}{end}");
        match before {
            Some(entry) => {
                lines[entry.line - 1] = line;
                Added::PasswordChanged
            }
            None => {
                lines.push(line);
                Added::New
            }
        }
    })
}

/// Removes an account; false if there was none. Blocking.
///
/// # Errors
/// Where the file cannot be read, understood or written. It is then as it was.
pub fn remove(path: &Path, name: &str) -> Result<bool, AccountsError> {
    if !path.exists() {
        return Ok(false);
    }
    edit(path, |entries, lines| {
        match entries.iter().find(|it| it.name == name.to_lowercase()) {
            Some(entry) => {
                lines.remove(entry.line - 1);
                true
            }
            None => false,
        }
    })
}

/// Rewrites the file at once and wholly: a running gateway reads the old file or the new one.
fn edit<T>(path: &Path, change: impl FnOnce(&[Entry], &mut Vec<String>) -> T) -> Result<T, AccountsError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Two that change the file at once would lose one change. The file itself is replaced, so the
    // lock is on its directory.
    let lock = File::open(directory).map_err(failed("open the directory of", path))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| failed("lock the directory of", path)(error.into()))?;

    let (text, before) = match File::open(path) {
        Ok(file) => (read(path)?, Some(file.metadata().map_err(failed("read", path))?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (String::new(), None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let entries = parse(path, &text)?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let result = change(&entries, &mut lines);
    lines.push(String::new());

    let mut scratch = path.to_owned().into_os_string();
    scratch.push(".new");
    let scratch = PathBuf::from(scratch);
    let written = (|| {
        // What an interrupted change left behind; we hold the lock.
        match fs::remove_file(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&scratch)?;
        if let Some(before) = before {
            // The gateway must still be able to read it after root has changed it, and nobody else.
            let now = file.metadata()?;
            if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
                fchown(&file, Some(before.uid()), Some(before.gid()))?;
            }
            file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o640 | 0o600))?;
        }
        file.write_all(lines.join("\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&scratch, path)?;
        // The rename itself lives in the directory, which has its own cache.
        lock.sync_all()
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(&scratch);
        failed("write", path)(error)
    })?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn faults(text: &str) -> Vec<(usize, Fault)> {
        match parse(Path::new("users"), text) {
            Ok(_) => vec![],
            Err(AccountsError::Lines { faults, .. }) => faults,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn names_every_line_that_is_wrong() {
        let text = [
            "# the scanners".to_owned(),
            format!("Scanner1:{HASH}"),
            String::new(),
            "nonsense".to_owned(),
            format!(":{HASH}"),
            "a:plain".to_owned(),
            "b:$2y$05$abcdefghijklmnopqrstuv".to_owned(),
            format!("c:{}", HASH.replace("argon2id", "argon2i")),
            format!("d:{}", HASH.replace("m=64", "m=4000000")),
            format!("e:{}", HASH.replace("t=1", "t=65")),
            format!("scanner1:{HASH}"),
            format!("f :{HASH}"),
            format!("g:{}", HASH.rsplit_once('$').expect("a hash").0),
            format!("  h:{HASH}\r"),
            format!("i:{HASH}:10.0.0.0/8, fd00::/8,192.168.1.7"),
            format!("j:{HASH}:10.0.0.0/33"),
            "k:{cram-md5}c2VjcmV0".to_owned(),
            "l:{cram-md5}".to_owned(),
        ]
        .join("\n");
        assert_eq!(
            faults(&text),
            [
                (4, Fault::NoColon),
                (5, Fault::Name),
                (6, Fault::Hash),
                (7, Fault::Hash),
                (8, Fault::Algorithm("argon2i".into())),
                (9, Fault::Cost),
                (10, Fault::Cost),
                (11, Fault::Twice(2)),
                (12, Fault::Name),
                (13, Fault::Hash),
                (16, Fault::Network("10.0.0.0/33".into())),
                (18, Fault::Hash),
            ]
        );
        let error = parse(Path::new("users"), &text).expect_err("refused").to_string();
        assert!(
            error.starts_with("users:4: expected 'name:hash'\nusers:5: "),
            "{error}"
        );
    }

    #[test]
    fn adds_changes_and_removes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("users");
        assert!(!remove(&path, "a").expect("nothing to do"));
        assert!(list(&path).is_err());

        assert_eq!(add(&path, "Scanner1", b"one").expect("added"), Added::New);
        assert_eq!(fs::metadata(&path).expect("a file").mode() & 0o777, 0o600);
        fs::write(&path, format!("# kept\n{}", read(&path).expect("text"))).expect("written");
        assert_eq!(add(&path, "fax", b"two").expect("added"), Added::New);
        let before = read(&path).expect("text");
        assert_eq!(
            add(&path, "SCANNER1", b"three").expect("added"),
            Added::PasswordChanged
        );
        assert_eq!(list(&path).expect("a list"), ["scanner1", "fax"]);
        let after = read(&path).expect("text");
        assert!(after.starts_with("# kept\nSCANNER1:$argon2id$") && after.ends_with('\n') && after != before);

        assert!(remove(&path, "Fax").expect("removed"));
        assert!(!remove(&path, "Fax").expect("nothing to do"));
        assert_eq!(list(&path).expect("a list"), ["scanner1"]);
        let left: Vec<_> = fs::read_dir(&directory).expect("a directory").collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn networks_stay_when_the_password_changes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("users");
        let networks: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"]
            .map(|it| it.parse().expect("a network"))
            .to_vec();
        let account = Account {
            name: "fax",
            password: b"one",
            recoverable: true,
            networks: Some(&networks),
        };
        add_account(&path, &account).expect("added");
        assert_eq!(
            read(&path).expect("text"),
            "fax:{cram-md5}b25l:10.0.0.0/8,fd00::/8\n"
        );
        add(&path, "Fax", b"two").expect("changed");
        let entries = parse(&path, &read(&path).expect("text")).expect("entries");
        assert_eq!(entries[0].networks, networks);
        assert!(matches!(entries[0].verifier, Verifier::Argon2id(_)));
        add_account(
            &path,
            &Account {
                networks: Some(&[]),
                ..account
            },
        )
        .expect("changed");
        assert_eq!(read(&path).expect("text"), "fax:{cram-md5}b25l\n");
    }

    #[test]
    fn refuses_what_would_break_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("users");
        for name in ["", "a:b", "a\nb", "#a", " a", "a\0", &"a".repeat(257)] {
            assert!(
                matches!(add(&path, name, b"x"), Err(AccountsError::Name(Fault::Name))),
                "{name:?}"
            );
        }
        assert!(matches!(add(&path, "a", b""), Err(AccountsError::Password)));
        assert!(!path.exists());

        fs::write(&path, "nonsense\n").expect("written");
        assert!(matches!(add(&path, "a", b"x"), Err(AccountsError::Lines { .. })));
        assert_eq!(read(&path).expect("text"), "nonsense\n");
    }

    #[test]
    fn the_mode_loses_what_others_may_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("users");
        fs::write(&path, "").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        add(&path, "a", b"x").expect("added");
        assert_eq!(fs::metadata(&path).expect("a file").mode() & 0o777, 0o640);
    }
}
