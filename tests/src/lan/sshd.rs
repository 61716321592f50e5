//! A real OpenSSH server on hosts of a LAN, and a user of the workstation who is let in there by key.
//!
//! With a single user id in the LAN's user namespace, a server that runs as root cannot change to anybody. So it runs in a
//! user namespace of its own, in which that id is an ordinary user's, [`USER`], who alone can log in.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::{Lan, Process, Skip};

/// Who logs in; `root` is this user's name on the workstation.
pub const USER: &str = "tester";
/// The id of [`USER`] where the server runs.
const ID: &str = "1000";
const SOON: Duration = Duration::from_secs(20);

/// The accounts of a host: names for the ids in its namespaces, all at home in `home`.
pub(super) fn accounts(home: &Path) -> (String, String) {
    let home = home.display();
    let users = format!(
        "root:*:0:0:root:{home}:/bin/sh\n{USER}:*:{ID}:{ID}:tester:{home}:/bin/sh\n\
         sshd:*:65534:65534:sshd:/:/bin/false\n"
    );
    (users, format!("root:x:0:\n{USER}:x:{ID}:\n"))
}

/// The server's program, which insists on being called by its whole path.
///
/// # Errors
/// When something that is needed is not installed.
pub fn installed() -> Result<PathBuf, Skip> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .collect();
    let find = |name: &str| {
        let mut paths = folders.iter().map(|folder| folder.join(name));
        paths.find(|path| path.is_file()).ok_or_else(|| {
            Skip(format!(
                "no SSH between hosts without the program `{name}`: install OpenSSH's server and client, and util-linux"
            ))
        })
    };
    for name in ["ssh", "ssh-keygen", "unshare"] {
        find(name)?;
    }
    find("sshd")
}

impl Lan {
    /// Starts the server on a host, and lets the workstation's user in. `known`: the workstation knows the host's key.
    ///
    /// # Errors
    /// As of [`installed`].
    ///
    /// # Panics
    /// When it does not start.
    pub fn sshd(&self, name: &str, known: bool) -> Result<Process, Skip> {
        let sshd = installed()?;
        let host = self.host(name);
        let client = self.ws().home().join(".ssh");
        let server = host.home().join(".ssh");
        for folder in [&client, &server] {
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder);
            made.unwrap_or_else(|why| panic!("{}: {why}", folder.display()));
        }
        let own = client.join("id_ed25519");
        if !own.exists() {
            new_key(&own);
            put(&client.join("config"), &format!("Host *\n  User {USER}\n"));
        }
        fs::copy(own.with_extension("pub"), server.join("authorized_keys"))
            .unwrap_or_else(|why| panic!("authorized_keys of {name}: {why}"));
        let key = server.join("host_key");
        new_key(&key);
        if known {
            let public = fs::read_to_string(key.with_extension("pub")).expect("it was just made");
            let line = format!("{name},{} {public}", host.address());
            put(&client.join("known_hosts"), &line);
        }
        let settings = server.join("sshd_config");
        put(
            &settings,
            &format!(
                "HostKey {}\nAuthorizedKeysFile {}/authorized_keys\nPidFile none\nUsePAM no\nStrictModes no\n\
                 UseDNS no\nPasswordAuthentication no\nLogLevel VERBOSE\n",
                key.display(),
                server.display()
            ),
        );
        // Port 22 without being root.
        if let Err(why) = host.write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0") {
            panic!("the low ports of {name}: {why}");
        }
        let daemon = host
            .program("unshare")
            .args(["--user", "--map-user", ID, "--map-group", ID, "--"])
            .args([
                &sshd.display().to_string(),
                "-D",
                "-e",
                "-f",
                &settings.display().to_string(),
            ])
            .spawn();
        daemon.wait_for("Server listening on 0.0.0.0", SOON);
        Ok(daemon)
    }

    /// Adds to the workstation's configuration of SSH. What comes first counts.
    ///
    /// # Panics
    /// Before the first server.
    pub fn ssh_config(&self, text: &str) {
        let path = self.ws().home().join(".ssh/config");
        let before = fs::read_to_string(&path).expect("made with the first server");
        fs::write(&path, format!("{text}\n{before}"))
            .unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    }
}

/// Adds to a file that nobody else may read.
fn put(path: &Path, text: &str) {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .unwrap_or_else(|why| panic!("{}: {why}", path.display()));
}

fn new_key(path: &Path) {
    let done = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "a test", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .expect("it is installed");
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ssh-keygen: {told}");
}
