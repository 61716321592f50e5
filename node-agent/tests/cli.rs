//! `svdnode` as people meet it.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

/// Without a farm key of whoever runs the tests, and without their cache.
fn svdnode(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_svdnode"))
        .args(arguments)
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("XDG_CACHE_HOME", home.join("cache"))
        .env_remove("SVDJOB_FARM_KEY")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .expect("svdnode runs")
}

#[test]
fn help_tells_how_to_join_a_farm_and_the_exit_codes() {
    let home = tempfile::tempdir().unwrap();
    let out = svdnode(home.path(), &["--help"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success());
    for word in ["scp ", "farm.pem", "24740", "--cores -2", "Exit codes"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn what_is_wrong_is_said_with_a_code_of_its_own() {
    let home = tempfile::tempdir().unwrap();
    let broken = home.path().join("broken.pem");
    std::fs::write(&broken, "hello").unwrap();
    let broken = broken.to_str().unwrap();
    let loopback = ["--no-advertise", "--listen", "127.0.0.1"];
    for (arguments, code, text) in [
        (vec!["--cores", "many"], 2, "--cores"),
        (vec!["--memory", "lots"], 2, "--memory"),
        (vec!["--listen", "here"], 2, "expected an address"),
        (vec![], 5, "this machine has no farm key"),
        (vec!["--farm-key", broken], 5, "is not a farm key"),
        (vec!["--farm-key", "/nowhere.pem"], 5, "could not read"),
    ] {
        let arguments: Vec<&str> = loopback.iter().copied().chain(arguments).collect();
        let out = svdnode(home.path(), &arguments);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(text), "{arguments:?}: {stderr}");
        assert!(out.stdout.is_empty());
    }
}
