//! Data flows one way: a module uses only what stands below it in `src/lib.rs`, and the stand-in cloud
//! uses nothing of the gateway.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of `src/lib.rs`, top down.
fn modules() -> Vec<String> {
    let names = |line: &str| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned());
    fs::read_to_string("src/lib.rs")
        .unwrap()
        .lines()
        .filter_map(names)
        .collect()
}

fn files(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            files(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|it| it == "rs") {
        found.push(path.to_owned());
    }
}

/// What a file names after `crate::`.
fn uses(text: &str) -> impl Iterator<Item = &str> {
    text.split("crate::").skip(1).map(|rest| {
        rest.split(|it: char| !it.is_alphanumeric() && it != '_')
            .next()
            .unwrap()
    })
}

#[test]
fn a_module_uses_only_what_stands_below_it() {
    let order = modules();
    assert!(order.len() > 20, "{order:?}");
    let (mut read, mut upward) = (0, Vec::new());
    for (place, module) in order.iter().enumerate() {
        let mut found = Vec::new();
        files(&Path::new("src").join(module), &mut found);
        let file = Path::new("src").join(format!("{module}.rs"));
        found.extend(file.exists().then_some(file));
        assert!(!found.is_empty(), "{module} has no file");
        for path in found {
            read += 1;
            let text = fs::read_to_string(&path).unwrap();
            // Unit tests may build their values with whatever makes them.
            let text = text.split("#[cfg(test)]").next().unwrap();
            let wrong = uses(text).filter(|it| order[..place].iter().any(|above| above == it));
            upward.extend(wrong.map(|it| format!("{} uses {it}", path.display())));
        }
    }
    assert!(read > 60, "{read} files");
    assert!(upward.is_empty(), "{upward:#?}");
}

#[test]
fn the_stand_in_cloud_uses_nothing_of_the_gateway() {
    let mut found = Vec::new();
    files(Path::new("src/sandbox"), &mut found);
    assert!(found.len() > 10, "{found:?}");
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        let other: Vec<&str> = uses(&text).filter(|it| *it != "sandbox").collect();
        assert!(other.is_empty(), "{} uses {other:?}", path.display());
    }
}
