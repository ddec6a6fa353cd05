//! A client against scripted servers.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;

fn server(script: impl FnOnce(UnixStream) + Send + 'static) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || script(listener.accept().unwrap().0));
    (dir, path)
}

fn greet(stream: &mut UnixStream) -> BufReader<UnixStream> {
    stream.write_all(b"{\"QMP\":{}}\r\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    stream.write_all(b"{\"return\":{},\"id\":1}\n").unwrap();
    reader
}

#[test]
fn matches_replies_by_id_and_keeps_events() {
    let (_dir, path) = server(|mut s| {
        let mut reader = greet(&mut s);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        s.write_all(
            b"{\"return\":1,\"id\":\"guard\"}\n{\"event\":\"STOP\",\"timestamp\":{\"seconds\":2,\
              \"microseconds\":5}}\n{\"return\":7,\"id\":2}\n",
        )
        .unwrap();
    });
    let mut qmp = Qmp::connect(&path, Duration::from_secs(5)).unwrap();
    assert_eq!(qmp.execute("stop", Value::Null).unwrap(), json!(7));
    let event = qmp
        .wait_event(Duration::from_secs(1), |e| e.name == "STOP")
        .unwrap()
        .unwrap();
    assert_eq!(event.time_us, 2_000_005);
}

#[test]
fn last_words_are_heard() {
    let (_dir, path) = server(|mut s| {
        let _reader = greet(&mut s);
        s.write_all(b"{\"event\":\"SHUTDOWN\"}\n").unwrap();
    });
    let mut qmp = Qmp::connect(&path, Duration::from_secs(5)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(qmp.take_events().unwrap()[0].name, "SHUTDOWN");
    assert!(matches!(qmp.take_events(), Err(QmpError::Closed)));
}

#[test]
fn a_socket_without_greeting_is_busy_and_none_is_gone() {
    let (_dir, path) = server(|s| {
        std::thread::sleep(Duration::from_secs(2));
        drop(s);
    });
    let error = Qmp::connect(&path, Duration::from_millis(100)).unwrap_err();
    assert!(matches!(error, QmpError::Busy { .. }), "{error}");
    let error = Qmp::connect(Path::new("/nonexistent/q"), Duration::from_secs(1)).unwrap_err();
    assert!(matches!(error, QmpError::Gone { .. }), "{error}");
}

#[test]
fn rubbish_and_refusals_are_errors() {
    let (_dir, path) = server(|mut s| {
        let mut reader = greet(&mut s);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        s.write_all(b"{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":2}\n")
            .unwrap();
        reader.read_line(&mut line).unwrap();
        s.write_all(b"\xff\xfe not json\n").unwrap();
    });
    let mut qmp = Qmp::connect(&path, Duration::from_secs(5)).unwrap();
    let error = qmp.execute("x", Value::Null).unwrap_err();
    assert_eq!(error.to_string(), "QEMU refused x: no");
    let error = qmp.execute("y", Value::Null).unwrap_err();
    assert!(matches!(error, QmpError::Protocol(_)), "{error}");
}
