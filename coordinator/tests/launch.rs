//! Nodes started over SSH, with a stand-in for `ssh` whose other machines are directories here.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use coordinator::launch::{LaunchError, Launched, Payload, launch};
use shared::net::identity::FarmKey;

/// As much of OpenSSH as is used. Host "shut" lets nobody in, "noisy" greets whoever logs in.
const SSH: &str = r#"#!/bin/sh
if [ "$1" = -G ]; then echo "hostname $2.example.org"; echo "stricthostkeychecking ask"; exit 0; fi
master= operation=
while [ $# -gt 0 ]; do
  case "$1" in
    -E) log=$2; shift 2 ;;
    -S) control=$2; shift 2 ;;
    -O) operation=$2; shift 2 ;;
    -o|-p) shift 2 ;;
    -M) master=yes; shift ;;
    -f|-N|-T) shift ;;
    --) shift; break ;;
    *) host=$1; shift ;;
  esac
done
if [ "$master" ]; then
  if [ "$host" = shut ]; then echo "me@shut: Permission denied (publickey)." >"$log"; exit 255; fi
  echo "$host" >"$control"; exit 0
fi
if [ "$operation" ]; then exit 0; fi
host=$(cat "$control")
export HOME="$MACHINES/$host" PATH="$MACHINES/$host/bin:$PATH"
unset XDG_CACHE_HOME
if [ "$host" = noisy ]; then echo "Welcome to noisy!"; fi
exec sh -c "$*"
"#;

/// As much of a node as is seen. What it was given is written down, but for the certificate itself.
const NODE: &str = r#"#!/bin/sh
parts=0
while read -r line; do
  case "$line" in END) break ;; *BEGIN*) parts=$((parts + 1)) ;; esac
done
echo "$* $parts" >"$HOME/given"
if [ -e "$HOME/broken" ]; then echo "error: no port is free" >&2; exit 4; fi
echo '{"svdnode":1,"port":24741,"id":"00000000000000ff","release":"0.1.0","cores":16}'
cat >/dev/null
echo ended >"$HOME/ended"
"#;

struct Machines {
    root: PathBuf,
}

impl Machines {
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    fn binaries(&self, host: &str) -> Vec<PathBuf> {
        let place = self.root.join(host).join(".cache/svdjob/bin");
        let entries = fs::read_dir(place).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    fn waits_for(&self, name: &str) {
        let begun = Instant::now();
        while !self.root.join(name).exists() {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{name} never came"
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Runs the test in a process of its own, in which `ssh` is the stand-in.
fn apart(name: &str, test: impl AsyncFnOnce(Machines)) {
    const MACHINES: &str = "MACHINES";
    if let Some(root) = std::env::var_os(MACHINES) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(Machines { root: root.into() }));
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let machines = Machines {
        root: root.path().to_owned(),
    };
    machines.file("path/ssh", SSH);
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(MACHINES, root.path())
        .env(
            "PATH",
            format!("{}:{path}", root.path().join("path").display()),
        )
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}"
    );
}

fn payload(binary: &Path) -> Arc<Payload> {
    let key = FarmKey::create().unwrap();
    Arc::new(Payload::of(binary, &key, vec!["--cores".into(), "it's 16".into()]).unwrap())
}

async fn all(
    hosts: &[&str],
    payload: &Arc<Payload>,
) -> Vec<(String, Result<Launched, LaunchError>)> {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut results = launch(&hosts, payload).join_all().await;
    results.sort_by(|a, b| a.0.cmp(&b.0));
    results
}

fn line(result: &Result<Launched, LaunchError>) -> String {
    match result {
        Ok(launched) => launched.to_string(),
        Err(why) => why.to_string(),
    }
}

#[test]
fn every_host_has_its_own_result() {
    apart("every_host_has_its_own_result", async |machines| {
        let payload = payload(&machines.file("svdnode", NODE));
        machines.file("alien/bin/uname", "#!/bin/sh\necho Plan9\n");
        machines.file("sick/broken", "");
        let hosts = ["big1", "noisy", "shut", "alien", "sick", "-oProxyCommand=x"];
        let results = all(&hosts, &payload).await;
        let lines: Vec<_> = results
            .iter()
            .map(|(host, r)| format!("{host}: {}", line(r)))
            .collect();
        assert_eq!(
            lines[0],
            "-oProxyCommand=x: expected a host as `ssh` takes it, such as \"alice@big1\""
        );
        assert!(
            lines[1].starts_with("alien: it is Plan9 Plan9, and the svdnode here is for "),
            "{lines:?}"
        );
        assert_eq!(lines[2], "big1: started, 16 cores, port 24741");
        assert_eq!(lines[3], "noisy: started, 16 cores, port 24741");
        assert_eq!(lines[4], "shut: Permission denied (publickey)");
        assert_eq!(
            lines[5],
            "sick: svdnode did not start: error: no port is free"
        );
        let Ok(big1) = &results[2].1 else {
            panic!("{lines:?}");
        };
        assert_eq!(big1.address.to_string(), "big1.example.org:24741");
        assert_eq!(big1.id, 0xff);
        // Two certificates and a key: what is lent, not the farm's key.
        let given = fs::read_to_string(machines.root.join("big1/given")).unwrap();
        assert_eq!(given, "--launched --cores it's 16 3\n");
    });
}

#[test]
fn a_node_ends_when_nobody_holds_it() {
    apart("a_node_ends_when_nobody_holds_it", async |machines| {
        let payload = payload(&machines.file("svdnode", NODE));
        let mut results = all(&["big1", "big2"], &payload).await;
        let mut two = results.pop().unwrap().1.unwrap();
        let one = results.pop().unwrap().1.unwrap();
        assert!(!machines.root.join("big1/ended").exists());
        one.stop().await;
        machines.waits_for("big1/ended");
        // As when it is killed.
        let waiting = tokio::time::timeout(Duration::from_millis(50), two.ended());
        assert!(waiting.await.is_err());
        drop(two);
        machines.waits_for("big2/ended");
    });
}

#[test]
fn the_binary_is_copied_once_and_again_when_it_is_damaged() {
    apart(
        "the_binary_is_copied_once_and_again_when_it_is_damaged",
        async |machines| {
            let first = payload(&machines.file("svdnode", NODE));
            let copied = async |payload: &Arc<Payload>| {
                all(&["big1"], payload).await.remove(0).1.unwrap().copied
            };
            assert!(copied(&first).await);
            assert!(!copied(&first).await);
            let there = machines.binaries("big1");
            assert_eq!(there.len(), 1);
            assert_eq!(fs::read_to_string(&there[0]).unwrap(), NODE);
            fs::write(&there[0], "#!/bin/sh\nexit 0\n").unwrap();
            assert!(copied(&first).await);
            assert_eq!(fs::read_to_string(&there[0]).unwrap(), NODE);
            // Other releases stay for a while, but not for ever.
            for release in 0..4 {
                let other = payload(&machines.file("svdnode", &format!("{NODE}# {release}\n")));
                assert!(copied(&other).await);
            }
            assert_eq!(machines.binaries("big1").len(), 3);
        },
    );
}
