//! `svdjob cache`.

use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::json;

use super::{End, Global, out, say};
use crate::cache::{Cache, Listed, Which};
use crate::failure::Failure;
use crate::job::{machine, size};
use crate::report::numbers::{count, table};

/// Show or remove prepared input.
///
/// A run keeps its input in a form that is fast to read again: the next run on the same file starts at once. What was
/// used least recently goes when the cache exceeds [resources] cache_max.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum CacheCommand {
    /// Show what the cache holds
    Ls {
        #[command(flatten)]
        place: Place,
    },
    /// Remove prepared inputs; those in use stay
    Rm {
        /// Path of the input, or the first letters of its key in `svdjob cache ls`
        #[arg(
            value_name = "WHICH",
            required_unless_present = "all",
            conflicts_with = "all"
        )]
        which: Vec<String>,
        /// Remove all
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        place: Place,
    },
}

/// Which cache.
#[derive(clap::Args, Clone, Debug)]
pub struct Place {
    /// Directory of the cache; the user's cache directory if not given
    #[arg(long, value_name = "DIR", env = "SVDJOB_CACHE")]
    pub cache: Option<PathBuf>,
}

impl Place {
    fn path(&self) -> PathBuf {
        self.cache.clone().unwrap_or_else(machine::cache_directory)
    }
}

/// Shows or removes.
///
/// # Errors
/// Resources: the cache cannot be read or changed. Job: nothing matches.
pub fn run(command: &CacheCommand, global: &Global) -> Result<(), End> {
    match command {
        CacheCommand::Ls { place } => {
            let cache = place.path();
            // Looking must not make a cache.
            let found = if cache.is_dir() {
                Cache::open(&cache, u64::MAX)?.list()?
            } else {
                Vec::new()
            };
            if global.json {
                let list: Vec<_> = found.iter().map(object).collect();
                out::object(&json!({ "cache": cache, "inputs": list }))?;
            } else if found.is_empty() {
                say(&format!("nothing is cached in {}\n", cache.display()));
            } else {
                out::text(&listing(&found))?;
            }
        }
        CacheCommand::Rm { which, all, place } => {
            let cache = place.path();
            let (mut removed, mut kept) = (Vec::new(), Vec::new());
            let wanted: Vec<Option<&str>> = if *all {
                vec![None]
            } else {
                which.iter().map(|which| Some(which.as_str())).collect()
            };
            for which in wanted {
                let (gone, in_use) = if cache.is_dir() {
                    let these = which.map_or(Which::All, |text| Which::Matching(text.to_owned()));
                    let done = Cache::open(&cache, u64::MAX)?.remove(&these)?;
                    (done.removed, done.in_use)
                } else {
                    (Vec::new(), Vec::new())
                };
                if let Some(which) = which
                    && gone.is_empty()
                    && in_use.is_empty()
                {
                    return Err(Failure::job(format!(
                        "nothing in the cache {} matches {which:?}",
                        cache.display()
                    ))
                    .help("`svdjob cache ls` shows what is there")
                    .into());
                }
                removed.extend(gone);
                kept.extend(in_use);
            }
            for entry in &kept {
                say(&format!("{} is in use and stays\n", entry.source.display()));
            }
            let bytes = removed.iter().map(|entry| entry.bytes).sum();
            if global.json {
                let list = |entries: &[Listed]| entries.iter().map(object).collect::<Vec<_>>();
                out::object(&json!({ "removed": list(&removed), "in_use": list(&kept) }))?;
            } else if !global.quiet {
                say(&format!(
                    "removed {} of {}\n",
                    match removed.len() {
                        1 => "1 input".to_owned(),
                        more => format!("{more} inputs"),
                    },
                    size::show(bytes)
                ));
            }
        }
    }
    Ok(())
}

fn object(entry: &Listed) -> serde_json::Value {
    json!({
        "key": entry.key,
        "source": entry.source,
        "rows": entry.rows,
        "columns": entry.columns,
        "nnz": entry.nnz,
        "bytes": entry.bytes,
        "last_used_seconds_ago": age(entry),
        "in_use": entry.in_use,
        "derived": entry.derived,
    })
}

fn listing(entries: &[Listed]) -> String {
    let mut rows = vec![
        ["Key", "Size", "Rows", "Columns", "Entries", "Used", "Input"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for entry in entries {
        rows.push(vec![
            entry.key.chars().take(8).collect(),
            size::show(entry.bytes).to_string(),
            count(entry.rows),
            count(entry.columns),
            count(entry.nnz),
            if entry.in_use {
                "now".into()
            } else {
                ago(age(entry))
            },
            match &entry.derived {
                None => entry.source.display().to_string(),
                Some(derived) => format!("{} ({derived})", entry.source.display()),
            },
        ]);
    }
    table(&rows, &[0, 6]).join("\n") + "\n"
}

fn age(entry: &Listed) -> u64 {
    SystemTime::now()
        .duration_since(entry.last_used)
        .map_or(0, |age| age.as_secs())
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => "just now".into(),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_lines_up() {
        let entry = |key: &str, bytes, source: &str| Listed {
            key: key.into(),
            source: source.into(),
            rows: 610,
            columns: 9724,
            nnz: 100_836,
            derived: None,
            bytes,
            last_used: SystemTime::now() - std::time::Duration::from_secs(7300),
            in_use: false,
        };
        let text = listing(&[
            entry("0123456789abcdef", 1 << 20, "/data/ratings.csv"),
            entry("fedcba9876543210", 300 << 20, "/r.csv"),
        ]);
        assert_eq!(
            text,
            "\
Key          Size  Rows  Columns  Entries     Used  Input
01234567    1 MiB   610    9,724  100,836  2 h ago  /data/ratings.csv
fedcba98  300 MiB   610    9,724  100,836  2 h ago  /r.csv
"
        );
    }
}
