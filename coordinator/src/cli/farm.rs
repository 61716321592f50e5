//! `svdjob farm`: the key that makes machines a farm.

use std::path::{Path, PathBuf};

use serde_json::json;
use shared::net::identity::{self, FarmKey, Identity, KeyError};

use super::{End, Global, out, say};
use crate::failure::{ExitCode, Failure};

/// Where a node looks for its key, from its home directory.
const THERE: &str = ".config/svdjob";

/// Make or show the farm's key.
///
/// A farm is the machines that have one key: they find each other, and talk to nobody else. `svdjob farm init` makes the
/// key once, on one machine; the others are given copies.
#[derive(clap::Subcommand, Clone, Debug)]
#[command(after_help = AFTER, after_long_help = format!("{AFTER}\n\n{}", super::EXIT_CODES))]
pub enum FarmCommand {
    /// Make a new farm: write its key, and show how to bring it to other machines
    #[command(after_help = AFTER, after_long_help = format!("{AFTER}\n\n{}", super::EXIT_CODES))]
    Init {
        #[command(flatten)]
        place: KeyPlace,
    },
    /// Show where the key is and its fingerprint, never the key itself
    #[command(after_long_help = super::EXIT_CODES)]
    Show {
        #[command(flatten)]
        place: KeyPlace,
    },
}

const AFTER: &str = "\
Examples:
  svdjob farm init                       make the key of a new farm
  svdjob farm show                       which farm does this machine belong to?
  scp ~/.config/svdjob/farm.pem big1:.config/svdjob/   bring the key to another machine
  svdjob nodes                           who is there?";

/// Which key.
#[derive(clap::Args, Clone, Debug)]
pub struct KeyPlace {
    /// File of the key; SVDJOB_FARM_KEY, else svdjob/farm.pem in the configuration directory, if not given
    #[arg(long, value_name = "FILE")]
    pub farm_key: Option<PathBuf>,
}

/// Makes or shows a key.
///
/// # Errors
/// Resources: it cannot be written or read. `NoFarm`: there is none to show. Job: there is one already.
pub fn run(command: &FarmCommand, global: &Global) -> Result<(), End> {
    match command {
        FarmCommand::Init { place } => {
            let path = place.path()?;
            let key = FarmKey::create()
                .map_err(|why| Failure::bug(format!("no farm key could be made: {why}")))?;
            key.write(&path).map_err(|why| key_failure(&why))?;
            let fingerprint = key.fingerprint().to_string();
            let commands = commands(&path);
            if global.json {
                out::object(&json!({
                    "status": "done",
                    "code": 0,
                    "path": path,
                    "fingerprint": fingerprint,
                    "commands": commands,
                }))?;
            } else {
                let [make, copy, start] = &commands;
                out::text(&format!(
                    "\
Made the farm {fingerprint}. Its key is {}
Whoever has the key belongs to the farm, so keep it to yourself.

For each other machine, here called HOST:
  {make} && {copy}
  {start}

Then `svdjob nodes` shows who is there, and `svdjob run` works with them.
",
                    path.display()
                ))?;
            }
        }
        FarmCommand::Show { place } => {
            let path = place.path()?;
            let identity = Identity::read(&path).map_err(|why| key_failure(&why))?;
            let fingerprint = identity.fingerprint().to_string();
            if open_to_others(&path) {
                say(&format!(
                    "warning: others on this machine can read the key; `chmod 600 {}` keeps them out\n",
                    quoted(&path.display().to_string())
                ));
            }
            if global.json {
                out::object(&json!({
                    "status": "done",
                    "code": 0,
                    "path": path,
                    "fingerprint": fingerprint,
                }))?;
            } else {
                out::text(&format!("{}\nfarm {fingerprint}\n", path.display()))?;
            }
        }
    }
    Ok(())
}

impl KeyPlace {
    fn path(&self) -> Result<PathBuf, Failure> {
        let path = identity::key_path(self.farm_key.as_deref()).ok_or_else(|| {
            Failure::resources("there is no home directory to keep a farm key in")
                .help("name a file with --farm-key")
        })?;
        Ok(std::path::absolute(&path).unwrap_or(path))
    }
}

/// The identity of this process, whose key must be there.
///
/// # Errors
/// `NoFarm`: there is no key. Others as of [`key_failure`].
pub fn identity(flag: Option<&Path>) -> Result<Identity, Failure> {
    match identity::find(flag).map_err(|why| key_failure(&why))? {
        Some(identity) => Ok(identity),
        None => Err(no_key(identity::key_path(flag).as_deref())),
    }
}

fn no_key(path: Option<&Path>) -> Failure {
    let place = path.map_or("the configuration directory".to_owned(), |path| {
        path.display().to_string()
    });
    Failure::new(
        ExitCode::NoFarm,
        format!("this machine belongs to no farm: there is no key {place}"),
    )
    .help(
        "`svdjob farm init` makes a new farm; to join one, bring its key from a machine that has it: \
         scp HOST:.config/svdjob/farm.pem ~/.config/svdjob/",
    )
}

/// What a missing or broken key means for people and scripts.
pub fn key_failure(why: &KeyError) -> Failure {
    match why {
        KeyError::Unreadable { path, why: error } if error.kind() == std::io::ErrorKind::NotFound => {
            no_key(Some(path))
        }
        KeyError::Unreadable { .. } | KeyError::Unwritable { .. } => {
            Failure::resources(why.to_string())
                .help("the key must be a file that you may read; --farm-key names another")
        }
        KeyError::NotAKey { .. } => Failure::job(why.to_string()).help(
            "bring the key anew from a machine that has it, or name the right file with --farm-key",
        ),
        KeyError::Exists { path } => Failure::job(format!(
            "{}; a new key would shut out every machine that has this one",
            why
        ))
        .help(format!(
            "`svdjob farm show` tells which farm it is; for a new farm, move the old key away first: mv {0} {0}.old",
            quoted(&path.display().to_string())
        )),
    }
}

/// What brings the key to another machine and starts a node there.
fn commands(path: &Path) -> [String; 3] {
    let from = quoted(&path.display().to_string());
    [
        format!("ssh HOST mkdir -p -m 700 {THERE}"),
        format!("scp {from} HOST:{THERE}/farm.pem"),
        "ssh HOST svdnode".to_owned(),
    ]
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(unix)]
fn open_to_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
}

#[cfg(not(unix))]
fn open_to_others(_path: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        assert_eq!(quoted("/home/a/farm.pem"), "/home/a/farm.pem");
        assert_eq!(
            quoted("/home/it's me/farm.pem"),
            r"'/home/it'\''s me/farm.pem'"
        );
        let [make, copy, _] = commands(Path::new("/keys/farm.pem"));
        assert_eq!(make, "ssh HOST mkdir -p -m 700 .config/svdjob");
        assert_eq!(copy, "scp /keys/farm.pem HOST:.config/svdjob/farm.pem");
    }
}
