//! How far a run is: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::numbers::{about, duration};
use super::screen;
use shared::size;

/// What a run tells while it lasts.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A stage begins, and with it the one before is over.
    Stage(Stage),
    /// So much of the stage is done, counted from its beginning.
    Done(u64),
    /// Something that everybody should read, now.
    Warning(String),
    /// Something good to know, now.
    Note(String),
    /// Nothing more comes.
    End,
}

/// A part of a run whose progress can be counted.
#[derive(Clone, PartialEq, Debug)]
pub struct Stage {
    /// Such as "reading ratings.csv", "range finder".
    pub title: String,
    pub unit: Unit,
    /// Where it is known.
    pub total: Option<u64>,
    /// Of a stage that reads all of the matrix.
    pub pass: Option<Pass>,
}

/// Which pass over the matrix, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pass {
    pub number: u32,
    /// None while it is not known how many there will be.
    pub of: Option<u32>,
}

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    Bytes,
    Entries,
    Tasks,
}

/// Who is told. Events come in order, from one thread at a time, as often as it pleases the run.
pub trait Observer: Send {
    fn observe(&mut self, event: Event);
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn observe(&mut self, _event: Event) {}
}

/// Who is fit for this process's stderr. `logs` says that other lines go there too, among which a bar would not live.
pub fn observer(quiet: bool, logs: bool) -> Box<dyn Observer> {
    if quiet {
        return Box::new(Silent);
    }
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if std::io::stderr().is_terminal() && !logs && !dumb {
        Box::new(Bar::new())
    } else {
        Box::new(Lines::new(std::io::stderr()))
    }
}

/// A stage under way, and what is known of the passes before it.
#[derive(Debug, Default)]
struct Pace {
    stage: Option<(Stage, Duration)>,
    done: u64,
    /// Seconds of passes that are over.
    passes: Vec<f64>,
}

impl Pace {
    /// Times are counted from the start of the run.
    fn begin(&mut self, stage: Stage, now: Duration) {
        self.end(now);
        self.done = 0;
        self.stage = Some((stage, now));
    }

    fn end(&mut self, now: Duration) {
        if let Some((stage, start)) = self.stage.take()
            && stage.pass.is_some()
        {
            self.passes.push(now.saturating_sub(start).as_secs_f64());
        }
    }

    fn part(&self) -> Option<f64> {
        let total = self.stage.as_ref()?.0.total.filter(|&total| total > 0)?;
        Some((self.done as f64 / total as f64).min(1.0))
    }

    /// Seconds left: of this pass and those after it, or of this stage where it is no pass.
    fn left(&self, now: Duration) -> Option<f64> {
        let (stage, start) = self.stage.as_ref()?;
        let spent = now.saturating_sub(*start).as_secs_f64();
        let part = self.part().filter(|&part| part > 0.02 && spent > 0.5);
        let left = part.map(|part| spent / part - spent);
        let Some(pass) = stage.pass else {
            return left;
        };
        let Some(of) = pass.of else {
            return left;
        };
        let later = f64::from(of.saturating_sub(pass.number));
        let mean = (!self.passes.is_empty())
            .then(|| self.passes.iter().sum::<f64>() / self.passes.len() as f64);
        match (left, mean, part) {
            (Some(left), Some(mean), _) => Some(left + later * mean),
            (Some(left), None, Some(part)) => Some(left + later * spent / part),
            (None, Some(mean), _) => Some((mean - spent).max(0.0) + later * mean),
            _ => None,
        }
    }

    fn title(&self) -> String {
        match &self.stage {
            Some((stage, _)) => match stage.pass {
                Some(Pass {
                    number,
                    of: Some(of),
                }) => {
                    format!("pass {number} of {of}: {}", stage.title)
                }
                Some(Pass { of: None, .. }) => stage.title.clone(),
                None => stage.title.clone(),
            },
            None => String::new(),
        }
    }

    /// Such as `45 %, 1.2 GiB/s, 12 s left`.
    fn text(&self, now: Duration) -> String {
        let Some((stage, start)) = &self.stage else {
            return String::new();
        };
        let mut words = Vec::new();
        match self.part() {
            Some(part) => words.push(format!("{:.0} %", (part * 100.0).floor())),
            None if self.done > 0 => words.push(match stage.unit {
                Unit::Bytes => size::show(self.done).to_string(),
                Unit::Entries => format!("{} entries", about(self.done as f64)),
                Unit::Tasks => format!("{} tasks", about(self.done as f64)),
            }),
            None => {}
        }
        let spent = now.saturating_sub(*start).as_secs_f64();
        if spent > 0.2 && self.done > 0 {
            let speed = self.done as f64 / spent;
            match stage.unit {
                Unit::Bytes => words.push(format!("{}/s", size::show(speed as u64))),
                Unit::Entries => words.push(format!("{} entries/s", about(speed))),
                // How fast tasks go says nothing to anybody.
                Unit::Tasks => {}
            }
        }
        if let Some(left) = self.left(now).filter(|&left| left >= 0.5) {
            let left = if left < 10.0 { left.ceil() } else { left };
            words.push(format!("{} left", duration(left).replace(".0 s", " s")));
        }
        words.join(", ")
    }
}

/// Plain lines: one at the start of each stage, and one every few seconds within it.
pub struct Lines<W> {
    out: W,
    start: Instant,
    last: Duration,
    pace: Pace,
}

const LINE_EVERY: Duration = Duration::from_secs(5);

impl<W: Write> Lines<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            start: Instant::now(),
            last: Duration::ZERO,
            pace: Pace::default(),
        }
    }

    fn observe_at(&mut self, event: Event, now: Duration) {
        // A reader that went away is no reason to stop.
        match event {
            Event::Stage(stage) => {
                self.pace.begin(stage, now);
                self.last = now;
                let _ = writeln!(self.out, "{}", self.pace.title());
            }
            Event::Done(done) => {
                self.pace.done = done;
                if now.saturating_sub(self.last) >= LINE_EVERY {
                    self.last = now;
                    let _ = writeln!(self.out, "  {}", self.pace.text(now));
                }
            }
            Event::Warning(text) => {
                let _ = writeln!(self.out, "warning: {text}");
            }
            Event::Note(text) => {
                let _ = writeln!(self.out, "{text}");
            }
            Event::End => self.pace.end(now),
        }
    }
}

impl<W: Write + Send> Observer for Lines<W> {
    fn observe(&mut self, event: Event) {
        let now = self.start.elapsed();
        self.observe_at(event, now);
    }
}

/// A bar that stays in its line and goes when the run ends.
struct Bar {
    bar: ProgressBar,
    /// No room for a bar beside its text.
    narrow: bool,
    start: Instant,
    last: Duration,
    pace: Pace,
}

const BAR_EVERY: Duration = Duration::from_millis(100);

impl Bar {
    fn new() -> Self {
        Self {
            bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            narrow: screen::width(std::io::stderr()) < 80,
            start: Instant::now(),
            last: Duration::ZERO,
            pace: Pace::default(),
        }
    }

    fn style(&self, known: bool) -> ProgressStyle {
        let template = match (known, self.narrow) {
            (true, false) => "{prefix} [{wide_bar}] {msg}",
            (true, true) | (false, _) => "{prefix} {wide_msg}",
        };
        ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ")
    }

    fn message(&self, now: Duration) -> String {
        let text = self.pace.text(now);
        if self.narrow {
            text
        } else {
            // So that the bar keeps its length.
            format!("{text:<36}")
        }
    }
}

impl Observer for Bar {
    fn observe(&mut self, event: Event) {
        let now = self.start.elapsed();
        match event {
            Event::Stage(stage) => {
                let total = stage.total;
                self.pace.begin(stage, now);
                self.last = now;
                // In this order, for each of these may draw.
                self.bar.set_message(self.message(now));
                self.bar.set_position(0);
                self.bar.set_prefix(self.pace.title());
                self.bar.set_length(total.unwrap_or(0));
                self.bar.set_style(self.style(total.is_some()));
                self.bar.tick();
            }
            Event::Done(done) => {
                self.pace.done = done;
                if now.saturating_sub(self.last) >= BAR_EVERY {
                    self.last = now;
                    self.bar.set_position(done);
                    self.bar.set_message(self.message(now));
                    self.bar.tick();
                }
            }
            Event::Warning(text) => self.bar.suspend(|| {
                let _ = writeln!(std::io::stderr(), "warning: {text}");
            }),
            Event::Note(text) => self.bar.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{text}");
            }),
            Event::End => self.bar.finish_and_clear(),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(title: &str, unit: Unit, total: Option<u64>, pass: Option<Pass>) -> Event {
        Event::Stage(Stage {
            title: title.into(),
            unit,
            total,
            pass,
        })
    }

    #[test]
    fn lines_come_at_stages_and_every_few_seconds() {
        let mut lines = Lines::new(Vec::new());
        let mut at = |seconds: u64, event| lines.observe_at(event, Duration::from_secs(seconds));
        at(
            0,
            stage("reading ratings.csv", Unit::Bytes, Some(100 << 20), None),
        );
        for second in 1..=10 {
            at(second, Event::Done(second * (10 << 20)));
        }
        let pass = |number| {
            Some(Pass {
                number,
                of: Some(3),
            })
        };
        at(
            10,
            stage("sketch", Unit::Entries, Some(80_000_000), pass(1)),
        );
        at(14, Event::Done(40_000_000));
        at(15, Event::Done(50_000_000));
        at(
            18,
            stage(
                "power iteration 1",
                Unit::Entries,
                Some(80_000_000),
                pass(2),
            ),
        );
        at(18, Event::Warning("the disk is slow".into()));
        at(24, Event::Done(60_000_000));
        at(26, stage("writing factors", Unit::Bytes, None, None));
        at(32, Event::Done(3 << 20));
        at(33, Event::End);
        assert_eq!(
            String::from_utf8(lines.out).unwrap(),
            "\
reading ratings.csv
  50 %, 10 MiB/s, 5 s left
  100 %, 10 MiB/s
pass 1 of 3: sketch
  62 %, 10.0 million entries/s, 19 s left
pass 2 of 3: power iteration 1
warning: the disk is slow
  75 %, 10.0 million entries/s, 10 s left
writing factors
  3 MiB, 512 KiB/s
"
        );
    }
}
