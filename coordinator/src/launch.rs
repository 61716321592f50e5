//! Starts nodes on other machines over SSH, for the time of a job.
//!
//! It is the user's own OpenSSH that connects: configuration, agent, jump hosts and known hosts are respected, and
//! nothing is asked for. The binary of the node is copied where it is not there yet, and is known by its hash. A node
//! started so is lent a certificate on its stdin, never the farm's key, and nothing of it is on a command line or disk.
//! It ends when its stdin does, which happens however this process ends.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openssh::{Child, ControlPersist, KnownHosts, Session, SessionBuilder, Stdio};
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use shared::net::discovery::HostPort;
use shared::net::identity::FarmKey;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::job::file::destination;

/// For the TCP connection, and for silence on it: three of these.
const ALIVE: Duration = Duration::from_secs(5);
/// For all that happens before a session is there, jump hosts and all.
const CONNECT_TIME: Duration = Duration::from_secs(20);
/// For a short command.
const COMMAND_TIME: Duration = Duration::from_secs(15);
/// For the binary to get there; a dead connection is noticed before.
const COPY_TIME: Duration = Duration::from_secs(600);
/// For a node to end that was told to.
const STOP_TIME: Duration = Duration::from_secs(2);
/// A connection that nobody uses ends after so many seconds, should this process be killed.
const LINGER_S: NonZeroUsize = NonZeroUsize::new(10).expect("not zero");
/// Lines of a login script, and the bytes of one, before the node's first words.
const NOISE_LINES_MAX: usize = 50;
const LINE_BYTES_MAX: u64 = 4096;
/// How long what is lent is good.
pub const LENT_DAYS: u32 = 7;

/// What is carried to every host.
pub struct Payload {
    path: PathBuf,
    binary: Vec<u8>,
    /// SHA-256 in hexadecimal digits: other systems have a command for it.
    hash: String,
    lent: String,
    /// More arguments of `svdnode`.
    arguments: Vec<String>,
}

impl Payload {
    /// The binary beside this program, or else on the path, and a certificate for some days.
    ///
    /// # Errors
    /// Resources: there is no binary, or the key cannot lend.
    pub fn gather(key: &FarmKey, arguments: Vec<String>) -> Result<Self, Failure> {
        let path = find_binary().ok_or_else(|| {
            Failure::resources("there is no svdnode to start on other machines")
                .help("it must be beside svdjob, or on the PATH")
        })?;
        Self::of(&path, key, arguments)
    }

    /// The same with a binary that is named.
    ///
    /// # Errors
    /// As above.
    pub fn of(path: &Path, key: &FarmKey, arguments: Vec<String>) -> Result<Self, Failure> {
        let binary = std::fs::read(path).map_err(|why| {
            Failure::resources(format!("{} cannot be read: {why}", path.display()))
        })?;
        let lent = key
            .lend(LENT_DAYS)
            .map_err(|why| Failure::resources(format!("no certificate can be lent: {why}")))?;
        let hash = digest(&SHA256, &binary)
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            binary,
            hash,
            lent,
            arguments,
        })
    }
}

fn find_binary() -> Option<PathBuf> {
    let name = format!("svdnode{}", std::env::consts::EXE_SUFFIX);
    let beside = std::env::current_exe().ok()?.parent()?.join(&name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(beside)
        .chain(std::env::split_paths(&path).map(|directory| directory.join(&name)))
        .find(|path| path.is_file())
}

/// Why a host has no node. The text completes "big1: ".
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("{0}")]
    Destination(String),
    #[error("ssh cannot be run: {0}")]
    Ssh(String),
    /// In the words of `ssh`.
    #[error("{0}")]
    Connect(String),
    #[error("nothing happened for {} s while {doing}", within.as_secs())]
    Slow {
        doing: &'static str,
        within: Duration,
    },
    #[error(
        "it is {there}, and the svdnode here is for {here}: install svdnode there, start it, and it will be found"
    )]
    Architecture { there: String, here: String },
    #[error("svdnode could not be copied: {0}")]
    Copy(String),
    #[error("svdnode did not start: {0}")]
    Start(String),
}

/// The node's first words.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
struct Handshake {
    svdnode: u32,
    port: u16,
    id: String,
    release: String,
    #[serde(default)]
    cores: u16,
}

/// A node that runs for as long as this is held.
pub struct Launched {
    /// As the user wrote it.
    pub host: String,
    /// Where to call it.
    pub address: HostPort,
    /// Drawn at its start.
    pub id: u64,
    pub release: String,
    pub cores: u16,
    /// Whether the binary had to be copied.
    pub copied: bool,
    child: Child<Arc<Session>>,
    session: Arc<Session>,
    last_words: Arc<Mutex<String>>,
    /// Goes after the session, whose socket is in there.
    _control: TempDir,
}

impl fmt::Display for Launched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.address.port.unwrap_or_default();
        write!(f, "started, {} cores, port {port}", self.cores)
    }
}

impl Launched {
    /// Waits until the node has ended, or the connection that holds it: what it said last. May be cancelled.
    pub async fn ended(&mut self) -> String {
        if let Some(stdout) = self.child.stdout() {
            let mut rest = [0; 256];
            while stdout.read(&mut rest).await.is_ok_and(|length| length > 0) {}
        }
        self.last_words
            .lock()
            .map_or(String::new(), |words| words.clone())
    }

    /// Ends the node and waits for that, but not for long.
    pub async fn stop(mut self) {
        drop(self.child.stdin().take());
        let _ = timeout(STOP_TIME, self.child.wait()).await;
        if let Some(session) = Arc::into_inner(self.session) {
            let _ = timeout(STOP_TIME, session.close()).await;
        }
    }
}

/// Starts a node on every host, all at once; what came of each, as it comes.
pub fn launch(
    hosts: &[String],
    payload: &Arc<Payload>,
) -> JoinSet<(String, Result<Launched, LaunchError>)> {
    let mut all = JoinSet::new();
    for host in hosts {
        let (host, payload) = (host.clone(), Arc::clone(payload));
        all.spawn(async move {
            let result = launch_one(&host, &payload).await;
            (host, result)
        });
    }
    all
}

/// Bounds a step.
async fn within<T>(
    doing: &'static str,
    time: Duration,
    step: impl Future<Output = Result<T, LaunchError>>,
) -> Result<T, LaunchError> {
    timeout(time, step).await.unwrap_or(Err(LaunchError::Slow {
        doing,
        within: time,
    }))
}

async fn launch_one(host: &str, payload: &Payload) -> Result<Launched, LaunchError> {
    let host = destination(host).map_err(LaunchError::Destination)?;
    let settings = within("reading its SSH settings", ALIVE, settings(&host)).await?;
    // The usual place may be too long a path for a socket.
    let control = tempfile::Builder::new()
        .prefix("svdjob-ssh-")
        .tempdir()
        .map_err(|why| LaunchError::Ssh(why.to_string()))?;
    let mut builder = SessionBuilder::default();
    builder
        .known_hosts_check(settings.known_hosts)
        .connect_timeout(ALIVE)
        .server_alive_interval(ALIVE)
        .control_persist(ControlPersist::IdleFor(LINGER_S))
        .control_directory(control.path());
    let connect = async {
        builder
            .connect(&host)
            .await
            .map_err(|why| connect_error(&why))
    };
    let session = Arc::new(within("connecting", CONNECT_TIME, connect).await?);
    let (path, copied) = prepare(&session, payload).await?;
    let (child, shake, last_words) = start(&session, &path, payload).await?;
    Ok(Launched {
        host,
        address: HostPort {
            host: settings.hostname,
            port: Some(shake.port),
        },
        id: u64::from_str_radix(&shake.id, 16).unwrap_or_default(),
        release: shake.release,
        cores: shake.cores,
        copied,
        child,
        session,
        last_words,
        _control: control,
    })
}

/// What the user's configuration of SSH says about a host.
struct Settings {
    hostname: String,
    known_hosts: KnownHosts,
}

async fn settings(host: &str) -> Result<Settings, LaunchError> {
    let output = tokio::process::Command::new("ssh")
        .args(["-G", host])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|why| LaunchError::Ssh(why.to_string()))?;
    if !output.status.success() {
        return Err(LaunchError::Ssh(last_line(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find_map(|(word, value)| {
            word.eq_ignore_ascii_case(key)
                .then(|| value.trim().to_owned())
        })
    };
    Ok(Settings {
        hostname: value("hostname").unwrap_or_else(|| host.to_owned()),
        known_hosts: match value("stricthostkeychecking").as_deref() {
            Some("accept-new") => KnownHosts::Add,
            Some("no" | "off" | "false") => KnownHosts::Accept,
            // Nobody is there to be asked.
            Some(_) | None => KnownHosts::Strict,
        },
    })
}

/// The words of `ssh` itself, without its name and the host's before them.
fn connect_error(why: &openssh::Error) -> LaunchError {
    let cause = std::error::Error::source(why).map_or(String::new(), ToString::to_string);
    match why {
        openssh::Error::Connect(_) if !cause.trim().is_empty() => {
            LaunchError::Connect(plain(&cause))
        }
        openssh::Error::Master(_) | openssh::Error::Ssh(_) => LaunchError::Ssh(cause),
        other => LaunchError::Connect(other.to_string()),
    }
}

fn plain(text: &str) -> String {
    // A changed host key is told in many lines, the last of which says the least.
    if text.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") {
        return "the host's key is not the one in known_hosts (Host key verification failed)"
            .into();
    }
    let line = last_line(text.as_bytes());
    match line.split_once(": ") {
        // "alice@big2: Permission denied (publickey)."
        Some((who, words)) if !who.contains(' ') => words.trim_end_matches('.').to_owned(),
        Some(_) | None => line.trim_end_matches('.').to_owned(),
    }
}

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    let harmless = |c: char| if c.is_control() { '?' } else { c };
    line.unwrap_or("it gave no reason")
        .trim()
        .chars()
        .map(harmless)
        .collect()
}

/// Says what the host is, where the binary goes, and the hash of what is there. Words of login scripts may come first.
const LOOK: &str = r#"
d="${XDG_CACHE_HOME:-$HOME/.cache}/svdjob/bin"
f="$d/svdnode-$1"
sum_of() {
  if command -v sha256sum >/dev/null 2>&1; then sha256sum <"$1"
  elif command -v shasum >/dev/null 2>&1; then shasum -a 256 <"$1"
  elif command -v sha256 >/dev/null 2>&1; then sha256 -q <"$1"
  elif command -v openssl >/dev/null 2>&1; then openssl dgst -r -sha256 <"$1"
  else echo unknown; fi
}
"#;

const LOOK_END: &str = r#"
echo "svdjob-system $(uname -s) $(uname -m)"
echo "svdjob-path $f"
if [ -x "$f" ]; then touch "$f"; echo "svdjob-hash $(sum_of "$f")"; else echo "svdjob-hash none"; fi
"#;

/// Takes the binary from stdin. Under its name it is there whole or not at all. Three that were used last are kept.
const COPY_END: &str = r#"
set -e
umask 077
mkdir -p "$d"
t="$d/.new-$1-$$"
trap 'rm -f "$t"' EXIT
cat >"$t"
chmod 700 "$t"
h=none
case "$(sum_of "$t")" in
  "$2"*) h="$2" ;;
  unknown) [ "$(wc -c <"$t")" -eq "$3" ] && h="$2" ;;
esac
if [ "$h" != none ]; then mv -f "$t" "$f"; fi
echo "svdjob-hash $h"
ls -t "$d"/svdnode-* | tail -n +4 | while read -r old; do rm -f "$old"; done
"#;

/// Sees to it that the binary is there: where, and whether it had to be copied.
async fn prepare(session: &Arc<Session>, payload: &Payload) -> Result<(String, bool), LaunchError> {
    let name = &payload.hash[..16];
    let look = format!("{LOOK}{LOOK_END}");
    let told = within(
        "looking what is there",
        COMMAND_TIME,
        script(session, &look, &[name], &[]),
    )
    .await?;
    let here = rustix::system::uname();
    let here = format!(
        "{} {}",
        here.sysname().to_string_lossy(),
        here.machine().to_string_lossy()
    );
    let there = said(&told, "svdjob-system").unwrap_or_else(|| "an unknown system".into());
    if there != here {
        return Err(LaunchError::Architecture { there, here });
    }
    let path = said(&told, "svdjob-path")
        .ok_or_else(|| LaunchError::Copy("its shell does not say where the cache is".into()))?;
    let whole = |told: &str| {
        said(told, "svdjob-hash")
            .is_some_and(|hash| hash.starts_with(&payload.hash) || hash == "unknown")
    };
    if whole(&told) {
        return Ok((path, false));
    }
    let copy = format!("{LOOK}{COPY_END}");
    let length = payload.binary.len().to_string();
    let told = within(
        "copying svdnode",
        COPY_TIME,
        script(
            session,
            &copy,
            &[name, &payload.hash, &length],
            &payload.binary,
        ),
    )
    .await?;
    if !whole(&told) {
        return Err(LaunchError::Copy(format!(
            "{} is not there as it is here; is its disk full?",
            payload.path.display()
        )));
    }
    Ok((path, true))
}

/// What follows a word at the start of a line.
fn said(told: &str, word: &str) -> Option<String> {
    let mut lines = told.lines().filter_map(|line| line.strip_prefix(word));
    lines
        .find_map(|rest| rest.strip_prefix(' '))
        .map(|rest| rest.trim().to_owned())
}

/// Runs a script of the POSIX shell, whatever shell the user has, and gives what it writes.
async fn script(
    session: &Arc<Session>,
    text: &str,
    arguments: &[&str],
    input: &[u8],
) -> Result<String, LaunchError> {
    let copy = |why: &dyn fmt::Display| LaunchError::Copy(why.to_string());
    let mut child = Arc::clone(session)
        .arc_command("sh")
        .args(["-c", text, "sh"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .await
        .map_err(|why| copy(&why))?;
    let mut stdin = child.stdin().take().expect("it is piped");
    let write = async {
        // Who ends before having read all says why on stderr.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), write);
    let output = output.map_err(|why| copy(&why))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(LaunchError::Copy(last_line(&output.stderr)))
    }
}

/// Starts the node, lends it a certificate, and waits for its first words.
async fn start(
    session: &Arc<Session>,
    path: &str,
    payload: &Payload,
) -> Result<(Child<Arc<Session>>, Handshake, Arc<Mutex<String>>), LaunchError> {
    let failed = |why: &dyn fmt::Display| LaunchError::Start(why.to_string());
    let mut child = Arc::clone(session)
        .arc_command(path.to_owned())
        .arg("--launched")
        .args(&payload.arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .await
        .map_err(|why| failed(&why))?;
    let last_words: Arc<Mutex<String>> = Arc::default();
    let stderr = child.stderr().take().expect("it is piped");
    let listener = tokio::spawn(keep_last_words(stderr, Arc::clone(&last_words)));
    let lent = format!("{}END\n", payload.lent);
    let stdin = child.stdin().as_mut().expect("it is piped");
    // Who ends before having read all says why on stderr.
    let _ = stdin.write_all(lent.as_bytes()).await;
    let _ = stdin.flush().await;
    let stdout = child.stdout().as_mut().expect("it is piped");
    let first_words = async { Ok(handshake(stdout).await) };
    match within("starting svdnode", COMMAND_TIME, first_words).await? {
        Some(shake) if shake.svdnode == 1 => Ok((child, shake, last_words)),
        Some(shake) => Err(LaunchError::Start(format!(
            "it speaks version {} of the first words, svdjob only 1",
            shake.svdnode
        ))),
        None => {
            // It has ended; what it said may still be on its way.
            let _ = timeout(Duration::from_secs(1), listener).await;
            let words = last_words
                .lock()
                .map_or(String::new(), |words| words.clone());
            Err(LaunchError::Start(last_line(words.as_bytes())))
        }
    }
}

/// The first line that is a handshake; `None` if the node ends without.
async fn handshake(stdout: &mut openssh::ChildStdout) -> Option<Handshake> {
    // A byte at a time, for what follows belongs to somebody else; it is one line.
    let mut reader = BufReader::with_capacity(1, stdout);
    for _ in 0..NOISE_LINES_MAX {
        let mut line = Vec::new();
        let mut bounded = (&mut reader).take(LINE_BYTES_MAX);
        if bounded.read_until(b'\n', &mut line).await.ok()? == 0 {
            return None;
        }
        if let Ok(shake) = serde_json::from_slice(&line) {
            return Some(shake);
        }
    }
    None
}

/// Reads the node's log to its end, so that it never has to wait for us, and keeps its last lines.
async fn keep_last_words(stderr: openssh::ChildStderr, words: Arc<Mutex<String>>) {
    const KEPT: usize = 8;
    let mut reader = BufReader::new(stderr);
    let mut lines: std::collections::VecDeque<String> = std::collections::VecDeque::new();
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut reader).take(LINE_BYTES_MAX);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let line = last_line(&line);
                tracing::debug!("a node over SSH: {line}");
                if lines.len() == KEPT {
                    lines.pop_front();
                }
                lines.push_back(line);
                if let Ok(mut words) = words.lock() {
                    *words = lines.make_contiguous().join("\n");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_ssh_are_made_short() {
        for (text, short) in [
            (
                "alice@big2: Permission denied (publickey).\r\n",
                "Permission denied (publickey)",
            ),
            (
                "ssh: connect to host big3 port 22: Connection refused\r\n",
                "connect to host big3 port 22: Connection refused",
            ),
            (
                "Host key verification failed.\r\n",
                "Host key verification failed",
            ),
            ("", "it gave no reason"),
        ] {
            assert_eq!(plain(text), short, "{text}");
        }
    }

    #[test]
    fn words_of_login_scripts_are_passed_over() {
        let told = "Welcome!\nsvdjob-hashes\nsvdjob-system Linux x86_64\nsvdjob-hash none\n";
        assert_eq!(said(told, "svdjob-system").as_deref(), Some("Linux x86_64"));
        assert_eq!(said(told, "svdjob-hash").as_deref(), Some("none"));
        assert_eq!(said(told, "svdjob-path"), None);
    }
}
