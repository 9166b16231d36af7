//! `graphpost cert`, as it is called: what it writes, prints and refuses.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use clap::Parser;
use graphpost::cli::cert::Cert;
use graphpost::config::Credential;
use graphpost::identity::credential::open_for_entra;
use openssl::hash::MessageDigest;
use openssl::pkcs12::Pkcs12;
use openssl::pkey::PKey;
use openssl::x509::X509;
use serde_json::Value;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    cert: Cert,
}

/// Runs `cert …`; `Err` is what goes to standard error.
fn cert(arguments: &[&str]) -> Result<String, String> {
    let arguments = std::iter::once(&"cert").chain(arguments);
    let cli = Cli::try_parse_from(arguments).map_err(|error| error.to_string())?;
    cli.cert.run().map_err(|error| error.to_string())
}

fn fixture(name: &str) -> String {
    format!("{}/tests/credentials/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

#[test]
fn new_writes_a_key_for_its_owner_and_a_certificate_for_all() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().to_str().unwrap();
    let text = cert(&[
        "new",
        "--out",
        out,
        "--bits",
        "2048",
        "--days",
        "90",
        "--name",
        "relay; \"é\"",
    ])
    .unwrap();

    let (key_file, certificate_file) = (
        directory.path().join("graphpost.key"),
        directory.path().join("graphpost.pem"),
    );
    assert_eq!(mode(&key_file), 0o600);
    let key = PKey::private_key_from_pem(&fs::read(&key_file).unwrap()).unwrap();
    let certificate = X509::from_pem(&fs::read(&certificate_file).unwrap()).unwrap();
    assert!(certificate.public_key().unwrap().public_eq(&key));
    assert!(certificate.verify(&key).unwrap(), "self-signed");
    assert_eq!(key.bits(), 2048);
    assert_eq!(certificate.version(), 2, "X.509 version 3");
    let name = certificate.subject_name().entries().next().unwrap();
    assert_eq!(
        std::str::from_utf8(name.data().as_slice()).unwrap(),
        "relay; \"é\""
    );
    let life = certificate.not_before().diff(certificate.not_after()).unwrap();
    assert_eq!((life.days, life.secs), (90, 300));

    let upper = |digest: MessageDigest| -> String {
        let digest = certificate.digest(digest).unwrap();
        digest.iter().map(|it| format!("{it:02X}")).collect()
    };
    for value in [
        upper(MessageDigest::sha1()),
        upper(MessageDigest::sha256()),
        key_file.display().to_string(),
        format!("--cert @{} --append", certificate_file.display()),
        "[tenant.credential]".to_owned(),
        "RSA, 2048 bits".to_owned(),
        "90 days left".to_owned(),
    ] {
        assert!(
            text.contains(&value),
            "{value}
{text}"
        );
    }
    let secret = fs::read_to_string(&key_file).unwrap();
    assert!(!text.contains(secret.lines().nth(3).unwrap()));

    // What it prints for the configuration works.
    open_for_entra(&Credential {
        certificate: certificate_file,
        private_key: Some(key_file.clone()),
        password: None,
    })
    .unwrap();

    // Never overwritten, and nothing else is touched.
    let error = cert(&["new", "--out", out, "--bits", "2048"]).unwrap_err();
    assert!(error.contains("graphpost.key: is there already"), "{error}");
    assert_eq!(fs::read_to_string(&key_file).unwrap(), secret);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn new_pfx_opens_with_its_password_file() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().to_str().unwrap();
    let text = cert(&["new", "--out", out, "--bits", "2048", "--pfx", "--json"]).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let pfx = Path::new(json["pfx_file"].as_str().unwrap());
    let password_file = Path::new(json["password_file"].as_str().unwrap());
    assert_eq!((mode(pfx), mode(password_file)), (0o600, 0o600));
    let password = fs::read_to_string(password_file).unwrap();
    assert!(password.trim_end().len() >= 20);
    assert!(!text.contains(password.trim_end()));
    let parsed = Pkcs12::from_der(&fs::read(pfx).unwrap())
        .unwrap()
        .parse2(password.trim_end())
        .unwrap();
    assert!(parsed.pkey.is_some());
    let der = parsed.cert.unwrap().to_der().unwrap();
    let uploaded = fs::read(json["certificate_file"].as_str().unwrap()).unwrap();
    assert_eq!(X509::from_pem(&uploaded).unwrap().to_der().unwrap(), der);

    let shown = cert(&[
        "show",
        "--json",
        pfx.to_str().unwrap(),
        "--password-file",
        password_file.to_str().unwrap(),
    ])
    .unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["sha1_thumbprint"], json["sha1_thumbprint"]);
}

#[test]
fn a_file_that_stands_in_the_way_leaves_no_half_pair_behind() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("graphpost.pem"), "precious").unwrap();
    let out = directory.path().to_str().unwrap();
    for more in [&[][..], &["--pfx"]] {
        let arguments = [&["new", "--out", out, "--bits", "2048"], more].concat();
        let error = cert(&arguments).unwrap_err();
        assert!(error.contains("graphpost.pem: is there already"), "{error}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    assert_eq!(
        fs::read_to_string(directory.path().join("graphpost.pem")).unwrap(),
        "precious"
    );

    let error = cert(&["new", "--out", "/proc/nowhere", "--bits", "2048"]).unwrap_err();
    assert!(
        error.contains("/proc/nowhere/graphpost.key: cannot be written"),
        "{error}"
    );
}

#[test]
fn show_gives_the_values_of_openssl_and_the_ways_to_upload() {
    let values = fs::read_to_string(fixture("values.txt")).unwrap();
    let value = |name: &str| {
        values
            .lines()
            .find_map(|it| it.strip_prefix(name)?.strip_prefix('='))
            .unwrap()
            .to_owned()
    };
    let file = fixture("app.cer");
    let text = cert(&["show", &file]).unwrap();
    for name in [
        "sha1",
        "sha256",
        "x5t",
        "x5t#S256",
        "customKeyIdentifier",
        "notBefore",
        "notAfter",
    ] {
        assert!(text.contains(&value(name)), "{name}\n{text}");
    }
    // Both manifests, each JSON that can be pasted.
    let manifests: Vec<Value> = text
        .split("\n\n   {\n")
        .skip(1)
        .map(|it| {
            let json: String = it.lines().take_while(|it| it.starts_with("   ")).collect();
            serde_json::from_str(&format!("{{{json}")).unwrap_or_else(|error| panic!("{error}: {json}"))
        })
        .collect();
    let [today, of_2016] = &manifests[..] else {
        panic!("{manifests:?}")
    };
    let (today, of_2016) = (&today["keyCredentials"][0], &of_2016["keyCredentials"][0]);
    assert_eq!(today["key"].as_str(), Some(value("der").as_str()));
    assert_eq!(of_2016["value"].as_str(), Some(value("der").as_str()));
    for entry in [today, of_2016] {
        assert_eq!(
            entry["customKeyIdentifier"].as_str(),
            Some(value("customKeyIdentifier").as_str())
        );
        assert_eq!(entry["type"], "AsymmetricX509Cert");
        assert_eq!(entry["usage"], "Verify");
        assert_eq!(entry["keyId"].as_str().unwrap().len(), 36);
    }
    assert_eq!(today["startDateTime"].as_str(), Some(value("notBefore").as_str()));
    assert_eq!(today["endDateTime"].as_str(), Some(value("notAfter").as_str()));
    assert!(text.contains(&format!("--cert @{file} --append")), "{text}");

    // A file with a key in it is never named for upload.
    let text = cert(&["show", &fixture("both.pem")]).unwrap();
    assert!(!text.contains("@/"), "{text}");
    assert!(text.contains("--cert @graphpost.pem --append"), "{text}");
    assert!(
        text.contains(&fs::read_to_string(fixture("app.pem")).unwrap()),
        "{text}"
    );
    assert!(!text.contains("PRIVATE KEY"), "{text}");
}

/// The same once more with the openssl of this machine, if it has one.
#[test]
fn show_agrees_with_the_openssl_command() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().to_str().unwrap();
    let json: Value =
        serde_json::from_str(&cert(&["new", "--json", "--out", out, "--bits", "2048"]).unwrap()).unwrap();
    let file = json["certificate_file"].as_str().unwrap();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(["x509", "-noout", "-in", file])
            .args(arguments)
            .output()
            .ok()?;
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        Some(text.split_once('=').unwrap().1.trim().replace(':', ""))
    };
    let Some(sha1) = openssl(&["-fingerprint", "-sha1"]) else {
        eprintln!("skipped: there is no openssl command here");
        return;
    };
    assert_eq!(json["sha1_thumbprint"].as_str(), Some(sha1.as_str()));
    let sha256 = openssl(&["-fingerprint", "-sha256"]).unwrap();
    assert_eq!(json["sha256_thumbprint"].as_str(), Some(sha256.as_str()));
}

#[test]
fn check_exits_by_freshness() {
    let app = fixture("app.pem");
    let text = cert(&["check", &app, "--expires-in", "30d"]).unwrap();
    assert!(text.contains("app.pem: valid for"), "{text}");
    let error = cert(&["check", &app, "--expires-in", "5000w"]).err();
    assert_eq!(error, None);
    let error = cert(&["check", &app, "--expires-in", "6000w"]).unwrap_err();
    assert!(error.contains("app.pem: expires in"), "{error}");
    let error = cert(&["check", &fixture("expired.pem")]).unwrap_err();
    assert!(
        error.contains("expired.pem: expired on 2020-01-01T00:00:00Z"),
        "{error}"
    );
    let error = cert(&["check", &fixture("not-yet.pem")]).unwrap_err();
    assert!(
        error.contains("is not valid before 2090-01-01T00:00:00Z"),
        "{error}"
    );
    let error = cert(&["check", &fixture("aes256-sha256.pfx")]).unwrap_err();
    assert!(
        error.contains("aes256-sha256.pfx: is protected by a password"),
        "{error}"
    );

    for time in ["soon", "-3d", "", "30"] {
        let error = cert(&["check", &app, &format!("--expires-in={time}")]).unwrap_err();
        assert!(error.contains("--expires-in"), "{time}: {error}");
    }
    for days in ["0", "100000"] {
        let error = cert(&["new", "--days", days]).unwrap_err();
        assert!(error.contains("--days"), "{error}");
    }
    for name in ["", "a\nb", &"x".repeat(65)] {
        let error = cert(&["new", "--name", name]).unwrap_err();
        assert!(error.contains("--name"), "{error}");
    }
}
