//! The config file: the flag comes before the environment, and that before the file. And what doctor
//! says of what is to happen by itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use common::{Vmtwin, code, text, told};

#[test]
fn flag_environment_file() {
    let vmtwin = Vmtwin::new();
    let file = vmtwin.path("config.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    // Where the repository is said to be, by an answer that does not open it.
    let where_is = |environment: &[(&str, &str)], args: &[&str]| -> Output {
        let mut command: Command = vmtwin.command(&[&["repo", "list", "--json"], args].concat());
        command
            .env_remove("VMTWIN_REPO")
            .env("VMTWIN_CONFIG", &file);
        command.envs(environment.iter().copied()).output().unwrap()
    };
    let location = |output: &Output| {
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        list[0]["location"].as_str().unwrap().to_owned()
    };
    write("repo = '/by/file'\n");
    assert_eq!(location(&where_is(&[], &[])), "/by/file");
    let environment = [("VMTWIN_REPO", "/by/environment")];
    assert_eq!(location(&where_is(&environment, &[])), "/by/environment");
    let flag = where_is(&environment, &["--repo", "/by/flag"]);
    assert_eq!(location(&flag), "/by/flag");
    // In the home folder it is found by itself.
    std::fs::create_dir_all(vmtwin.home()).unwrap();
    std::fs::copy(&file, vmtwin.home().join("config.toml")).unwrap();
    let mut command = vmtwin.command(&["repo", "list", "--json"]);
    command
        .env_remove("VMTWIN_REPO")
        .env_remove("VMTWIN_CONFIG");
    assert_eq!(location(&command.output().unwrap()), "/by/file");

    write("# fine\nreop = 'x'\n");
    let wrong = where_is(&[], &[]);
    assert_eq!(code(&wrong), 2);
    assert!(
        told(&wrong).contains("line 2") && told(&wrong).contains(text(&file)),
        "{}",
        told(&wrong)
    );
    write("repo = 'x'\n");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    let wrong = where_is(&[], &[]);
    assert!(told(&wrong).contains("chmod"), "{}", told(&wrong));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(
        code(&where_is(&[], &[])),
        2,
        "one that is named must be there"
    );
}

#[test]
fn doctor_knows_whether_schedules_are_followed() {
    let vmtwin = Vmtwin::new();
    vmtwin.ok(&["init"]);
    let state = |what: &str| {
        let answer = vmtwin.run(&["doctor", "--json"]);
        let checks: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
        let mut checks = checks.as_array().unwrap().iter();
        let check = checks.find(|check| check["what"] == what).unwrap();
        (check["state"].clone(), check["mend"].clone())
    };
    assert_eq!(state("schedules").0, "ok");
    vmtwin.ok(&["schedule", "add", "nightly", "--on", "2099-01-01", "--all"]);
    let (found, mend) = state("schedules");
    assert_eq!(found, "warning");
    assert!(mend.as_str().unwrap().contains("vmtwin serve"), "{mend}");
    let mut follower = vmtwin.command(&["schedule", "follow"]).spawn().unwrap();
    let end = std::time::Instant::now() + common::PATIENCE;
    while state("schedules").0 != "ok" {
        assert!(std::time::Instant::now() < end, "it is not seen");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let pid = rustix::process::Pid::from_child(&follower);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(follower.wait().unwrap().success());
    // Nothing was to be told yet.
    let mut wrong = vmtwin.command(&["notify", "add", "ops", "--command", "exit 1"]);
    assert!(wrong.status().unwrap().success());
    assert_eq!(state("notifications").0, "ok");
}
