//! How a run may end, as people and scripts are told.

use std::fmt;

/// Exit codes of `svdjob`. Documented in README and in `svdjob --help`; scripts depend on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ExitCode {
    /// The job file or the flags are wrong.
    Job = 2,
    /// The input data are wrong.
    Data = 3,
    /// Memory, disk or permission is missing.
    Resources = 4,
    /// No farm was found and the job wants one.
    NoFarm = 5,
    /// The tolerance was not reached; the factors were written all the same.
    Tolerance = 6,
    /// A bug of this program.
    Bug = 70,
    /// Interrupted by Ctrl-C or SIGTERM.
    Interrupted = 130,
}

/// An end that is not success. `message` is a whole sentence or several lines ready to be shown; `help` says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: ExitCode,
    pub message: String,
    pub help: Option<String>,
}

impl Failure {
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            help: None,
        }
    }

    pub fn job(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Job, message)
    }

    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Data, message)
    }

    pub fn resources(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Resources, message)
    }

    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Bug, message)
    }

    pub fn interrupted() -> Self {
        Self::new(ExitCode::Interrupted, "interrupted")
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
