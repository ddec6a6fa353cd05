//! Messages delivered to real servers and programs, which say what came.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmtwin_notify::{By, Command, Mail, Message, Place, Target, Webhook, make_signing_secret};
use vmtwin_testkit::{Sink, Workdir, run};

fn message() -> Message {
    Message {
        id: "6ba7b810-9dad-41d1-80b4-00c04fd430c8".to_owned(),
        host: "host1".to_owned(),
        subject: "vmtwin on host1: 1 failed — web\r\nBcc: other@example.net".to_owned(),
        text: "web01: failed: Größe\n.\nthe end\n".to_owned(),
        document: r#"{"text":"Größe"}"#.to_owned(),
        variables: vec![("VMTWIN_SUBJECT".to_owned(), "a 'b' $(c)\0".to_owned())],
    }
}

fn webhook(sink: &Sink, secret_file: Option<PathBuf>) -> Target {
    let url = Place::Here(format!("http://127.0.0.1:{}/hook?key=k1", sink.port()));
    Target::Webhook(Webhook { url, secret_file })
}

fn mail(by: By) -> Target {
    Target::Mail(Mail {
        to: vec!["a@example.net".to_owned(), "b@example.net".to_owned()],
        from: "vmtwin@host1".to_owned(),
        by,
    })
}

fn smtp(url: String, password_file: Option<PathBuf>) -> Target {
    mail(By::Smtp { url, password_file })
}

fn write(path: &Path, text: &str) -> PathBuf {
    std::fs::write(path, text).unwrap();
    path.to_owned()
}

/// OpenSSL's HMAC of a text, base64.
fn hmac_by_openssl(work: &Workdir, key: &[u8], text: &str) -> String {
    let text = write(&work.join("signed"), text);
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let script = format!(
        "openssl dgst -sha256 -mac HMAC -macopt hexkey:{key} -binary {} | base64",
        text.display()
    );
    let output = run(std::process::Command::new("sh").args(["-c", &script]));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_webhook_is_posted_and_signed() {
    let (sink, work) = (Sink::http(), Workdir::new());
    webhook(&sink, None).deliver(&message()).unwrap();
    let plain = &sink.taken()[0];
    assert_eq!(plain["body"], message().document);
    assert_eq!(plain["path"], "/hook?key=k1");
    assert_eq!(plain["headers"]["content-type"], "application/json");
    assert!(plain["headers"].get("webhook-signature").is_none());

    // A secret as it is made here, in base64, and one of another form.
    let made = make_signing_secret().unwrap();
    let encoded = made.strip_prefix("whsec_").unwrap().to_owned();
    let decode = format!("printf %s '{encoded}' | base64 -d");
    let bytes = run(std::process::Command::new("sh").args(["-c", &decode])).stdout;
    for (secret, key) in [(made.as_str(), bytes.as_slice()), ("plain", b"plain")] {
        let file = write(&work.join("secret"), &format!("{secret}\nmore\n"));
        webhook(&sink, Some(file)).deliver(&message()).unwrap();
        let taken = sink.taken().pop().unwrap();
        let head = |name: &str| taken["headers"][name].as_str().unwrap();
        assert_eq!(head("webhook-id"), message().id);
        let body = taken["body"].as_str().unwrap();
        let signed = format!("{}.{}.{body}", message().id, head("webhook-timestamp"));
        let expected = format!("v1,{}", hmac_by_openssl(&work, key, &signed));
        assert_eq!(head("webhook-signature"), expected);
    }
}

#[test]
fn a_webhook_that_fails_says_why_without_its_url() {
    let sink = Sink::http();
    let target = webhook(&sink, None);
    for status in [500, 302] {
        sink.answer(status);
        let error = target.deliver(&message()).unwrap_err().to_string();
        assert!(error.contains(&status.to_string()), "{error}");
        assert!(!error.contains("k1"), "{error}");
    }
    assert_eq!(sink.taken().len(), 2);
    drop(sink);
    let error = target.deliver(&message()).unwrap_err().to_string();
    assert!(
        error.contains("cannot be reached") && !error.contains("k1"),
        "{error}"
    );
}

#[test]
fn a_mail_arrives_as_it_was_written() {
    let sink = Sink::smtp();
    let url = format!("smtp://127.0.0.1:{}", sink.port());
    smtp(url.clone(), None).deliver(&message()).unwrap();
    let mail = &sink.taken()[0];
    assert_eq!(mail["from"], "vmtwin@host1");
    assert_eq!(mail["to"][1], "b@example.net");
    assert_eq!(
        mail["subject"],
        "vmtwin on host1: 1 failed — webBcc: other@example.net"
    );
    let text = mail["text"].as_str().unwrap().replace("\r\n", "\n");
    assert_eq!(text.trim_end(), message().text.trim_end());
    assert_eq!(mail["headers"]["auto-submitted"], "auto-generated");
    assert!(mail["headers"].get("bcc").is_none());
    assert!(
        mail["headers"]["message-id"]
            .as_str()
            .unwrap()
            .contains(&message().id)
    );
    assert_eq!(mail["defects"].as_array().map(Vec::len), Some(0), "{mail}");

    sink.answer(452);
    let error = smtp(url.clone(), None).deliver(&message()).unwrap_err();
    assert!(error.to_string().contains("452"), "{error}");
    let wants_tls = smtp(format!("{url}?tls=required"), None);
    assert!(wants_tls.deliver(&message()).is_err());
    assert_eq!(sink.taken().len(), 2);
}

#[test]
fn a_mail_goes_through_sendmail() {
    let work = Workdir::new();
    let script = "#!/bin/sh\nprintf '%s|' \"$@\" >\"$0.args\"\ncat >\"$0.mail\"\n";
    let program = write(&work.join("sendmail"), script);
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let by = By::Sendmail { program };
    mail(by).deliver(&message()).unwrap();
    let args = std::fs::read_to_string(work.join("sendmail.args")).unwrap();
    assert_eq!(args, "-i|-f|vmtwin@host1|--|a@example.net|b@example.net|");
    let text = std::fs::read_to_string(work.join("sendmail.mail")).unwrap();
    assert!(text.contains("Subject: ") && !text.contains('\r'), "{text}");
}

fn command(text: &str, timeout_s: u64) -> Target {
    let command = text.to_owned();
    Target::Command(Command { command, timeout_s })
}

#[test]
fn a_command_reads_the_document_and_is_ended_in_time() {
    let work = Workdir::new();
    let out = work.join("out");
    let script = format!(
        "{{ cat; printf '|%s' \"$VMTWIN_SUBJECT\"; env; }} >{}",
        out.display()
    );
    command(&script, 10).deliver(&message()).unwrap();
    let text = std::fs::read_to_string(&out).unwrap();
    let expected = format!("{}|a 'b' $(c) ", message().document);
    assert!(text.starts_with(&expected), "{text}");
    assert!(
        !text.contains("CARGO"),
        "the environment is its own: {text}"
    );

    let failed = command("echo 'no good' >&2; exit 7", 10);
    let error = failed.deliver(&message()).unwrap_err().to_string();
    assert!(error.contains('7') && error.contains("no good"), "{error}");
    // It does not read what it is given.
    command("exit 0", 10).deliver(&message()).unwrap();

    let begun = Instant::now();
    let mark = work.join("mark");
    let slow = format!("(sleep 4; touch {0}) & sleep 60; touch {0}", mark.display());
    let error = command(&slow, 1)
        .deliver(&message())
        .unwrap_err()
        .to_string();
    assert!(error.contains("after 1 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30));
    std::thread::sleep(Duration::from_secs(5));
    assert!(!mark.exists(), "a child of it lives on");
}

/// A certificate for this machine's address, and its key.
fn certificate(work: &Workdir) -> (PathBuf, PathBuf) {
    let (certificate, key) = (work.join("tls.crt"), work.join("tls.key"));
    run(std::process::Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=sink"])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key));
    (certificate, key)
}

/// Set in the second process of the test below.
const INSIDE: &str = "VMTWIN_TEST_TRUSTS";

/// The certificates that are trusted are those of the machine, which `SSL_CERT_FILE` names: hence a
/// process of its own.
#[test]
fn tls_is_checked() {
    if let Ok(folder) = std::env::var(INSIDE) {
        let trusted = std::env::var_os("SSL_CERT_FILE").is_some();
        return over_tls(Path::new(&folder), trusted);
    }
    let work = Workdir::new();
    let (certificate, _) = certificate(&work);
    for trusted in [Some(&certificate), None] {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["tls_is_checked", "--exact", "--nocapture"]);
        again.env(INSIDE, work.path()).env_remove("SSL_CERT_FILE");
        if let Some(certificate) = trusted {
            again.env("SSL_CERT_FILE", certificate);
        }
        run(&mut again);
    }
}

fn over_tls(work: &Path, trusted: bool) {
    let (certificate, key) = (work.join("tls.crt"), work.join("tls.key"));
    let sink = Sink::https(&certificate, &key);
    let url = Place::Here(format!("https://127.0.0.1:{}/", sink.port()));
    let secret_file = None;
    let sent = Target::Webhook(Webhook { url, secret_file }).deliver(&message());
    assert_eq!(sent.is_ok(), trusted, "{sent:?}");
    assert_eq!(sink.taken().len(), usize::from(trusted));

    let sink = Sink::smtp_tls(&certificate, &key);
    let url = format!("smtp://me@127.0.0.1:{}?tls=required", sink.port());
    let password = write(&work.join("password"), "secret\n");
    let sent = smtp(url.clone(), Some(password)).deliver(&message());
    assert_eq!(sent.is_ok(), trusted, "{sent:?}");
    if trusted {
        assert_eq!(sink.taken()[0]["user"], "me");
        assert_eq!(sink.taken()[0]["tls"], true);
        let wrong = write(&work.join("wrong"), "guess\n");
        let error = smtp(url, Some(wrong)).deliver(&message()).unwrap_err();
        assert!(error.to_string().contains("535"), "{error}");
    }
    assert_eq!(sink.taken().len(), usize::from(trusted));
}
