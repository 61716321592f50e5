//! The result for people.

use super::numbers::{about, count, cut, digits, duration, percent, table, wrap};
use super::summary::Summary;
use crate::job::diagnostics::Look;
use crate::job::size;

/// Triplets shown at the start and at the end of a long table.
const HEAD: usize = 10;
const TAIL: usize = 3;
/// Below this, keys stand above their text.
const NARROW: usize = 60;
const KEY: usize = 11;

/// The whole report, ending in a line feed.
pub fn render(summary: &Summary, look: Look) -> String {
    let mut page = Page {
        text: String::new(),
        look: Look {
            width: look.width.clamp(30, 100),
            ..look
        },
    };
    triplets(summary, &mut page);
    page.text.push('\n');

    page.entry("Factored", &factored(summary));
    if let Some(text) = deficient(summary) {
        page.entry("Rank", &text);
    }
    page.entry("Accuracy", &accuracy(summary));
    page.entry("Time", &time(summary));
    page.entry("Factors", &factors(summary));
    numpy(summary, &mut page);

    for nearest in &summary.nearest {
        page.text.push('\n');
        page.bold(&format!("Nearest to {}", nearest.of));
        for neighbour in &nearest.neighbours {
            let room = page.look.width.saturating_sub(8);
            let name = cut(&neighbour.name, room);
            page.line(&format!("  {:>4.2}  {name}", neighbour.cosine));
        }
    }
    page.text
}

struct Page {
    text: String,
    look: Look,
}

impl Page {
    fn line(&mut self, text: &str) {
        self.text.push_str(text.trim_end());
        self.text.push('\n');
    }

    fn bold(&mut self, text: &str) {
        if self.look.color {
            self.line(&format!("\x1b[1m{text}\x1b[0m"));
        } else {
            self.line(text);
        }
    }

    /// A key and its text, broken into lines that begin below each other.
    fn entry(&mut self, key: &str, text: &str) {
        let narrow = self.look.width < NARROW;
        let indent = if narrow { 2 } else { KEY };
        let mut lines = wrap(text, self.look.width - indent).into_iter();
        if narrow {
            self.bold(key);
        } else {
            let first = lines.next().unwrap_or_default();
            let padded = format!("{key:<KEY$}");
            if self.look.color {
                self.line(&format!("\x1b[1m{padded}\x1b[0m{first}"));
            } else {
                self.line(&format!("{padded}{first}"));
            }
        }
        for line in lines {
            self.line(&format!("{:indent$}{line}", ""));
        }
    }
}

fn triplets(summary: &Summary, page: &mut Page) {
    let cumulative = summary.cumulative();
    let total = summary.sigma.len();
    let whole = total <= HEAD + TAIL + 1;
    let mut header: Vec<String> = ["#", "sigma", "residual", "share", "together"]
        .map(str::to_owned)
        .to_vec();
    // What adds least goes first where there is little room.
    let columns = match page.look.width {
        0..36 => 3,
        36..44 => 4,
        _ => 5,
    };
    header.truncate(columns);
    let mut rows = vec![header];
    let of = |values: &[f64], at: usize, show: fn(f64) -> String| {
        values
            .get(at)
            .map_or_else(|| "-".into(), |&value| show(value))
    };
    for (at, &sigma) in summary.sigma.iter().enumerate() {
        if !whole && at == HEAD {
            rows.push(vec!["...".into()]);
        }
        if !whole && at >= HEAD && at + TAIL < total {
            continue;
        }
        let mut row = vec![
            (at + 1).to_string(),
            digits(sigma),
            of(&summary.residuals, at, |x| format!("{x:.1e}")),
            of(&summary.explained, at, percent),
            of(&cumulative, at, percent),
        ];
        row.truncate(columns);
        rows.push(row);
    }
    for (at, line) in table(&rows, &[]).iter().enumerate() {
        if at == 0 {
            page.bold(line);
        } else {
            page.line(line);
        }
    }
}

fn factored(summary: &Summary) -> String {
    let cells = summary.rows as f64 * summary.columns as f64;
    let full = if cells > 0.0 {
        let full = summary.nnz as f64 / cells;
        let places = if full < 0.0001 { 6 } else { 2 };
        format!(" ({:.places$} % of all)", full * 100.0)
    } else {
        String::new()
    };
    let turned = if summary.transposed {
        "; worked on as its transpose"
    } else {
        ""
    };
    format!(
        "{} rows x {} columns, {} entries{full}{turned}",
        count(summary.rows),
        count(summary.columns),
        count(summary.nnz)
    )
}

fn deficient(summary: &Summary) -> Option<String> {
    let (got, requested) = (summary.rank.got, summary.rank.requested);
    (got < requested).then(|| match got {
        0 => format!(
            "the matrix is zero, so there is no triplet at all; {requested} were asked for"
        ),
        1 => format!("the matrix has rank 1, as far as can be told; so there is 1 triplet, not the {requested} asked for"),
        _ => format!("the matrix has rank {got}, as far as can be told; so there are {got} triplets, not the {requested} asked for"),
    })
}

fn accuracy(summary: &Summary) -> String {
    let orthogonal = summary.orthogonality.u.max(summary.orthogonality.v);
    let rest = format!("U and V orthonormal to {orthogonal:.1e}");
    let explained = summary.cumulative().last().map_or(String::new(), |&sum| {
        format!("; {} of the sum of squares explained", percent(sum))
    });
    match summary.worst_residual() {
        Some((triplet, residual)) => {
            format!("worst residual {residual:.1e} (triplet {triplet}); {rest}{explained}")
        }
        None => rest,
    }
}

fn time(summary: &Summary) -> String {
    let mut text = duration(summary.seconds);
    let phases: Vec<_> = summary
        .phases
        .iter()
        .map(|phase| format!("{} {}", phase.name, duration(phase.seconds)))
        .collect();
    if !phases.is_empty() {
        text.push_str(&format!(": {}", phases.join(", ")));
    }
    if summary.ingest_reused {
        text.push_str("; input found prepared in the cache");
    }
    if summary.passes > 0 && summary.pass_seconds > 0.0 {
        let speed = summary.nnz as f64 * f64::from(summary.passes) / summary.pass_seconds;
        text.push_str(&format!(
            "; {} passes at {} entries/s",
            summary.passes,
            about(speed)
        ));
    }
    if let Some(peak) = summary.peak_memory {
        text.push_str(&format!("; at most {} of memory", size::show(peak)));
    }
    text
}

fn factors(summary: &Summary) -> String {
    let (m, n, k) = (summary.rows, summary.columns, summary.sigma.len());
    format!(
        "{}: U.npy ({m} x {k}), S.npy ({k}), Vt.npy ({k} x {n}), rows.csv, columns.csv, manifest.json",
        summary.directory.display()
    )
}

/// Three lines to paste: they are never broken.
fn numpy(summary: &Summary, page: &mut Page) {
    let indent = if page.look.width < NARROW {
        page.entry("In Python", "");
        page.text.truncate(page.text.trim_end().len());
        page.text.push('\n');
        2
    } else {
        page.text.push('\n');
        2
    };
    let directory = python_text(&summary.directory.display().to_string());
    for line in [
        "import numpy as np".to_owned(),
        format!(
            "U, S, Vt = (np.load({directory} + x) for x in (\"/U.npy\", \"/S.npy\", \"/Vt.npy\"))"
        ),
        "row = U[0] * S @ Vt    # row 0 of the matrix, as the factors have it".to_owned(),
    ] {
        page.line(&format!("{:indent$}{line}", ""));
    }
}

/// A text as Python writes it.
fn python_text(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\n' => quoted.push_str("\\n"),
            letter if letter.is_control() => {
                quoted.push_str(&format!("\\x{:02x}", u32::from(letter)));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
