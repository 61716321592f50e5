//! `svdjob explain`: the account of a run in one process.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

const JOB: &str = r#"
[matrix]
path = "ratings.csv"
rows = 1
columns = 2
values = 3

[factor]
rank = 3
oversample = 4
power_iterations = 2

[output]
directory = "factors"

[resources]
memory = "1 GiB"
cores = 2
cache = "cache"
"#;

fn svdjob(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_svdjob"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .env_remove("SVDJOB_FARM_KEY")
        .env("SVDJOB_CACHE", folder.join("other cache"))
        .env("XDG_CONFIG_HOME", folder.join("config"))
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn told(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    format!("{stdout}{stderr}")
}

#[test]
fn a_run_in_one_process_is_explained_by_stage_and_by_task() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    fs::write(root.join("factor.toml"), JOB).unwrap();
    let lines: Vec<String> = (0..400)
        .map(|n| format!("{},{},{}\n", n % 40, (n * 7) % 23 + n / 40, 1 + n % 5))
        .collect();
    fs::write(root.join("ratings.csv"), lines.concat()).unwrap();
    let nothing = told(&svdjob(root, &["explain", "factor.toml"]), 2);
    assert!(nothing.contains("no record of a run"), "{nothing}");
    told(&svdjob(root, &["run", "factor.toml", "--quiet"]), 0);
    for run in [&[][..], &["factor.toml"], &["factors"]] {
        let all = told(&svdjob(root, &[&["explain"], run].concat()), 0);
        for word in [
            "in one process; done after",
            "Who has worked",
            "agent 0",
            "power pass 1",
            "lift pass",
            "Stages",
        ] {
            let words: Vec<&str> = all.split_whitespace().collect();
            let words = words.join(" ");
            assert!(words.contains(word), "{run:?}: no {word:?} in {all}");
        }
        // A path cannot be broken.
        let lines = all
            .lines()
            .filter(|line| !line.contains(&root.display().to_string()));
        for line in lines {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
    let one = told(&svdjob(root, &["explain", "--stage", "power pass 2"]), 0);
    assert!(one.contains("power pass 2") && !one.contains("power pass 1"));
    let json = svdjob(root, &["explain", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let stages = json["stages"].as_array().unwrap();
    for stage in stages {
        assert_eq!(stage["tasks"], stage["done"], "{stage}");
        let by_agents = stage["agents"].as_array().unwrap().iter();
        let by_agents: u64 = by_agents.map(|a| a["tasks"].as_u64().unwrap()).sum();
        assert_eq!(stage["done"], by_agents, "{stage}");
    }
    let task = json["tasks"][0]["task"].to_string();
    let story = told(&svdjob(root, &["explain", "--task", &task]), 0);
    assert!(
        story.contains("assigned to agent 0") && story.contains("done by agent 0"),
        "{story}"
    );
    let nobody = told(&svdjob(root, &["explain", "--node", "big2"]), 2);
    assert!(nobody.contains("no node big2"), "{nobody}");
}
