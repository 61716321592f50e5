//! A process on a host of a LAN.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{Wiring, words::What};

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

/// It goes on when this is dropped, until the LAN goes.
pub struct Process {
    pub(super) label: String,
    pub(super) host: String,
    pub(super) pid: u32,
    pub(super) stdout: PathBuf,
    pub(super) stderr: PathBuf,
    pub(super) wiring: Arc<Wiring>,
}

/// How often files are looked at.
const LOOK: Duration = Duration::from_millis(4);

impl Process {
    /// All that it has written to stdout so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// All that it has written to stderr so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// The first whole line with these words, on either of its outputs; waits for it.
    ///
    /// # Panics
    /// When it does not come in time, or the process ends without it.
    pub fn wait_for(&self, words: &str, within: Duration) -> String {
        let deadline = Instant::now() + within;
        loop {
            // In this order: what it said before its end counts.
            let over = self.ended();
            let line = [self.stdout(), self.stderr()]
                .iter()
                .find_map(|text| whole_line(text, words));
            if let Some(line) = line {
                return line;
            }
            if let Some(exit) = over {
                panic!(
                    "{} ended ({exit:?}) without {words:?}{}",
                    self.label,
                    self.told()
                );
            }
            assert!(
                Instant::now() < deadline,
                "{} did not say {words:?} within {within:?}{}",
                self.label,
                self.told()
            );
            thread::sleep(LOOK);
        }
    }

    /// Whether it has said this.
    pub fn has_said(&self, words: &str) -> bool {
        self.stdout().contains(words) || self.stderr().contains(words)
    }

    /// Its end, if it has come.
    pub fn ended(&self) -> Option<Exit> {
        let key = (self.host.clone(), self.pid);
        self.wiring.heard().exits.get(&key).copied()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not come in time.
    pub fn exit(&self, within: Duration) -> Exit {
        let key = (self.host.clone(), self.pid);
        self.wiring
            .wait(Instant::now() + within, |heard| {
                heard.exits.get(&key).copied()
            })
            .unwrap_or_else(|| {
                panic!(
                    "{} did not end within {within:?}{}",
                    self.label,
                    self.told()
                )
            })
    }

    /// Waits for its end, which must be a good one.
    ///
    /// # Panics
    /// When it is not.
    pub fn succeeds(&self, within: Duration) {
        self.exits_with(0, within);
    }

    /// Waits for its end, which must be with this code.
    ///
    /// # Panics
    /// When it is not.
    pub fn exits_with(&self, code: i32, within: Duration) {
        let exit = self.exit(within);
        assert_eq!(
            exit.code,
            Some(code),
            "{}: {exit:?}{}",
            self.label,
            self.told()
        );
    }

    /// The power goes out for it. Returns when it is gone.
    pub fn kill9(&self) {
        self.signal(Signal::KILL);
        self.exit(super::PATIENCE);
    }

    /// It stands still, and knows nothing of it.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(exit) = self.ended() {
            panic!(
                "{} has ended ({exit:?}) before it got {signal:?}{}",
                self.label,
                self.told()
            );
        }
        let order = What::Signal {
            pid: self.pid,
            signal: signal.as_raw(),
        };
        if let Err(why) = self.wiring.ask(&self.host, order) {
            panic!("{signal:?} to {}: {why}", self.label);
        }
    }

    /// The ends of its outputs, for messages.
    pub fn told(&self) -> String {
        format!(
            "\n--- its stdout\n{}\n--- its stderr\n{}\n---",
            tail(self.stdout().as_bytes()),
            tail(self.stderr().as_bytes())
        )
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// A line that is still being written is not yet there.
fn whole_line(text: &str, words: &str) -> Option<String> {
    text.split_inclusive('\n')
        .find(|line| line.ends_with('\n') && line.contains(words))
        .map(|line| line.trim_end().to_owned())
}

/// The last lines.
pub(super) fn tail(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
