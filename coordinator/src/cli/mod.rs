//! The command line of `svdjob`.

pub mod cache;
pub mod check;
pub mod explain;
pub mod farm;
pub mod init;
pub mod nodes;
pub mod out;
pub mod plan;
pub mod run;
pub mod signals;
pub mod transform;

use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;

use clap::{ColorChoice, Parser, Subcommand};

use crate::failure::{ExitCode, Failure};
use crate::job::diagnostics::{Look, Problems};
use crate::job::resolve::LoadError;
use crate::report::{json, screen};

const ABOUT: &str = "Out-of-core randomized SVD of sparse ratings matrices";

const LONG_ABOUT: &str = "\
Out-of-core randomized SVD of sparse ratings matrices.

svdjob reads a file of ratings far larger than memory, finds its leading singular triplets, and writes them as NumPy \
arrays. A job file says what to factor and how; `svdjob init ratings.csv` writes one.";

const EXIT_CODES: &str = "\
Exit codes:
    0  done (also when the matrix has a lower rank than asked for: the report says so)
    2  the job file or the flags are wrong
    3  the input data are wrong
    4  memory, disk space or a permission is missing
    5  no farm was found, and the job wants one
    6  the tolerance was not reached; the factors were written all the same
   70  a bug of svdjob
  130  interrupted by Ctrl-C or SIGTERM";

const TOP_AFTER: &str = "\
Examples:
  svdjob init ratings.csv        write factor.toml, a job file to begin with
  svdjob check factor.toml       is the job right? (reads only the head of the input)
  svdjob plan factor.toml        what will be computed, and what will it cost?
  svdjob run factor.toml         factor
  svdjob transform factors new.csv
                                 project new rows with the factors
  svdjob farm init               let other machines work too
  svdjob nodes                   which of them are there?
  svdjob explain                 why did the last run go as it went?
  svdjob help run                all about it";

/// All arguments.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "svdjob",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = TOP_AFTER,
    after_long_help = format!("{TOP_AFTER}\n\n{EXIT_CODES}"),
    max_term_width = 100,
    // The last of two equal flags counts, as aliases and scripts expect.
    args_override_self = true,
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command knows.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// Log what happens to stderr; twice for more (RUST_LOG, if set, decides instead)
    #[arg(long, short, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,

    /// No progress; warnings and errors only
    #[arg(long, short, global = true)]
    pub quiet: bool,

    /// The result as one JSON object on stdout
    #[arg(long, global = true)]
    pub json: bool,

    /// Colours; auto: on terminals, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
}

/// The commands.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    Run(run::RunArgs),
    Transform(transform::TransformArgs),
    Check(check::CheckArgs),
    Plan(plan::PlanArgs),
    Init(init::InitArgs),
    #[command(subcommand)]
    Farm(farm::FarmCommand),
    Nodes(nodes::NodesArgs),
    Explain(explain::ExplainArgs),
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    Synth(crate::synth::SynthArgs),
}

impl Global {
    /// How to write to stdout.
    pub fn stdout_look(&self) -> Look {
        let stdout = std::io::stdout();
        Look {
            color: self.colored(&stdout),
            width: screen::width(&stdout),
        }
    }

    /// How to write to stderr.
    pub fn stderr_look(&self) -> Look {
        let stderr = std::io::stderr();
        Look {
            color: self.colored(&stderr),
            width: screen::width(&stderr),
        }
    }

    fn colored(&self, stream: &impl IsTerminal) -> bool {
        match self.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => screen::wants_color(stream),
        }
    }

    /// Whether lines of the log go to stderr.
    pub fn logs(&self) -> bool {
        self.verbose > 0 || std::env::var_os("RUST_LOG").is_some_and(|filter| !filter.is_empty())
    }
}

/// An end that is not success.
#[derive(Clone, Debug)]
pub enum End {
    Failure(Failure),
    Problems(Problems),
    /// The result has been written and told; it says itself that it is not as good as was asked for. What to do.
    Unconverged(&'static str),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<LoadError> for End {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Unreadable(failure) => Self::Failure(failure),
            LoadError::Problems(problems) => Self::Problems(problems),
        }
    }
}

/// The whole program.
pub fn main() -> process::ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = panic
            .location()
            .map_or(String::new(), |place| format!(" ({place})"));
        say(&format!(
            "error: svdjob ran into a bug of its own: {message}{place}\n  \
             Please report it, with the job file and, if you can, the output under RUST_BACKTRACE=1.\n"
        ));
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            let trace = std::backtrace::Backtrace::force_capture();
            say(&format!("{trace}\n"));
        }
    }));
    match catch_unwind(AssertUnwindSafe(run_command)) {
        Ok(code) => process::ExitCode::from(code),
        Err(_) => process::ExitCode::from(ExitCode::Bug as u8),
    }
}

fn run_command() -> u8 {
    // Usage errors end the program here, with code 2.
    let cli = Cli::parse();
    start_logging(&cli.global);
    let global = &cli.global;
    let result = match &cli.command {
        Command::Run(args) => run::run(args, global),
        Command::Transform(args) => transform::run(args, global),
        Command::Check(args) => check::run(args, global),
        Command::Plan(args) => plan::run(args, global),
        Command::Init(args) => init::run(args, global),
        Command::Farm(command) => farm::run(command, global),
        Command::Nodes(args) => nodes::run(args, global),
        Command::Explain(args) => explain::run(args, global),
        Command::Cache(command) => cache::run(command, global),
        Command::Synth(args) => signals::stop_flag()
            .and_then(|stop| crate::synth::run(args, &stop))
            .map_err(End::from),
    };
    match result {
        Ok(()) => 0,
        Err(end) => report_end(&end, global),
    }
}

/// Tells what went wrong; gives the exit code.
fn report_end(end: &End, global: &Global) -> u8 {
    let (code, text, object) = match end {
        End::Failure(failure) => (
            failure.code,
            failure_text(failure, global.stderr_look()),
            json::failed(failure),
        ),
        End::Unconverged(help) => {
            say(&format!(
                "warning: the tolerance was not reached; the factors and their certificate were written all the same\n  help: {help}\n"
            ));
            return ExitCode::Tolerance as u8;
        }
        End::Problems(problems) => (
            problems.code,
            problems.render(global.stderr_look()),
            json::refused(problems),
        ),
    };
    say(&text);
    if global.json {
        // It cannot be told that this cannot be told.
        let _ = out::object(&object);
    }
    code as u8
}

fn failure_text(failure: &Failure, look: Look) -> String {
    let paint = |code: &str, word: &str| {
        if look.color {
            format!("\x1b[1;{code}m{word}\x1b[0m")
        } else {
            word.to_owned()
        }
    };
    let mut text = match failure.code {
        ExitCode::Interrupted => format!("{}\n", failure.message),
        ExitCode::Bug => format!(
            "{} {}\n  This is a bug of svdjob. Please report it, with the job file.\n",
            paint("31", "error:"),
            failure.message
        ),
        ExitCode::Job
        | ExitCode::Data
        | ExitCode::Resources
        | ExitCode::NoFarm
        | ExitCode::Tolerance => format!("{} {}\n", paint("31", "error:"), failure.message),
    };
    if let Some(help) = &failure.help {
        text.push_str(&format!("{} {help}\n", paint("36", " help:")));
    }
    text
}

/// Talk goes to stderr. If nobody listens, that is no reason to fail.
pub fn say(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes());
    let _ = stderr.flush();
}

fn start_logging(global: &Global) {
    use tracing_subscriber::EnvFilter;
    if !global.logs() {
        return;
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new(match global.verbose {
            0 => "warn",
            1 => "info",
            2 => "debug",
            _ => "trace",
        })
    });
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(global.stderr_look().color)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_tells_exit_codes_examples_and_where_things_go() {
        let mut cli = Cli::command();
        cli.build();
        for name in ["run", "transform", "check", "plan", "nodes", "farm"] {
            let command = cli.find_subcommand_mut(name).unwrap();
            let help = command.render_long_help().to_string();
            assert!(help.contains(EXIT_CODES), "{name}: {help}");
        }
        let run = cli.find_subcommand_mut("run").unwrap();
        let help = run.render_long_help().to_string();
        for word in [
            "Examples:",
            "stdout",
            "svdjob init --defaults",
            "manifest.json",
        ] {
            assert!(help.contains(word), "{word}: {help}");
        }
        assert!(cli.render_long_help().to_string().contains(EXIT_CODES));
        for (code, number) in [
            (ExitCode::Job, "    2  "),
            (ExitCode::Data, "    3  "),
            (ExitCode::Resources, "    4  "),
            (ExitCode::NoFarm, "    5  "),
            (ExitCode::Tolerance, "    6  "),
            (ExitCode::Bug, "   70  "),
            (ExitCode::Interrupted, "  130  "),
        ] {
            assert_eq!(number.trim(), (code as u8).to_string());
            assert!(EXIT_CODES.contains(number));
        }
    }

    #[test]
    fn failures_are_told_with_what_to_do() {
        let failure = Failure::data("ratings.csv is empty").help("was it downloaded whole?");
        assert_eq!(
            failure_text(&failure, Look::PLAIN),
            "error: ratings.csv is empty\n help: was it downloaded whole?\n"
        );
        let bug = failure_text(&Failure::bug("block 7 is gone"), Look::PLAIN);
        assert!(bug.contains("bug of svdjob"), "{bug}");
        let interrupted = failure_text(&Failure::interrupted(), Look::PLAIN);
        assert_eq!(interrupted, "interrupted\n");
    }
}
