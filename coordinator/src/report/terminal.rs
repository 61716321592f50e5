//! The result for people.

use super::numbers::{about, aligned, count, cut, duration, percent, table, wrap};
use super::summary::{Centred, FarmSummary, NodeSummary, StageBytes, Summary};
use crate::farm::traffic::Sums;
use crate::job::diagnostics::Look;
use crate::job::resolved::{Center, Scale, ToleranceKind, Which};
use crate::output::certificate::{Certificate, Status};
use shared::size;

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
    if !summary.sigma.is_empty() {
        triplets(summary, &mut page);
        page.text.push('\n');
    }

    page.entry("Factored", &factored(summary));
    if let Some(centred) = &summary.centring {
        page.entry("Centred", &self::centred(centred));
    }
    if let Some(text) = deficient(summary) {
        page.entry("Rank", &text);
    }
    page.entry("Accuracy", &accuracy(summary));
    page.entry("Time", &time(summary));
    if let Some(farm) = &summary.farm {
        page.entry("Farm", &self::farm(farm));
    }
    if let Some(resumed) = &summary.resumed {
        page.entry("Resumed", resumed.trim_start_matches("resuming "));
    }
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
    let sigma_text = aligned(&summary.sigma);
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
            sigma_text(sigma),
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

fn centred(centred: &Centred) -> String {
    let means = match centred.center {
        Center::None => None,
        Center::Columns => Some("column means, absent entries taken as 0"),
        Center::Rows => Some("row means, absent entries taken as 0"),
        Center::Both => Some("row and column means, absent entries taken as 0"),
        Center::ObservedColumns => Some("column means of the entries that are there"),
        Center::ObservedRows => Some("row means of the entries that are there"),
        Center::ObservedBoth => Some("row and column means of the entries that are there"),
    };
    let means = means.map(|means| format!("less {means}"));
    let scaled = match centred.scale {
        Scale::None => None,
        Scale::Columns => Some("columns over their standard deviations".to_owned()),
    };
    let done: Vec<String> = means.into_iter().chain(scaled).collect();
    done.join("; ")
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
    let rest = match (summary.orthogonality.u, summary.orthogonality.v) {
        (Some(u), Some(v)) => format!("U and V orthonormal to {:.1e}", u.max(v)),
        (Some(u), None) => format!("U orthonormal to {u:.1e}"),
        (None, Some(v)) => format!("V orthonormal to {v:.1e}"),
        (None, None) => "neither U nor V formed".to_owned(),
    };
    let variance = summary
        .certificate
        .as_ref()
        .is_some_and(|c| c.explained_variance.is_some());
    let of = if variance {
        "variance"
    } else {
        "sum of squares"
    };
    let explained = summary.cumulative().last().map_or(String::new(), |&sum| {
        format!("; {} of the {of} explained", percent(sum))
    });
    let goal = match &summary.certificate {
        Some(Certificate {
            tolerance: Some(tolerance),
            status,
            worst,
            ..
        }) => {
            let kind = match tolerance.kind {
                ToleranceKind::Residual => "tolerance",
                ToleranceKind::Sigma => "tolerance of sigma",
            };
            match status {
                Status::Unconverged => format!(
                    "NOT REACHED after {} reads: {kind} {:.0e}, found {}; ",
                    summary.passes,
                    tolerance.value,
                    worst.map_or("nothing".to_owned(), |worst| format!("{worst:.1e}"))
                ),
                Status::Converged | Status::Measured => {
                    format!("{kind} {:.0e} reached; ", tolerance.value)
                }
            }
        }
        Some(_) | None => String::new(),
    };
    match summary.worst_residual() {
        Some((triplet, residual)) => {
            format!("{goal}worst residual {residual:.1e} (triplet {triplet}); {rest}{explained}")
        }
        None if summary.sigma.is_empty() => rest,
        None => format!(
            "residuals not measured, for that takes the pass that forms U; {rest}{explained}"
        ),
    }
}

fn time(summary: &Summary) -> String {
    let mut text = duration(summary.seconds);
    // "power pass 1 of 4" and "pass 7" are one with their like: the manifest has each.
    let mut summed: Vec<(String, f64)> = Vec::new();
    for phase in &summary.phases {
        let kind = match phase.name.split_once(|c: char| c.is_ascii_digit()) {
            Some((kind, rest))
                if rest.contains("of ") || rest.chars().all(|c| c.is_ascii_digit()) =>
            {
                kind.trim_end()
            }
            Some(_) | None => &phase.name,
        };
        match summed.iter_mut().find(|(known, _)| known == kind) {
            Some((_, seconds)) => *seconds += phase.seconds,
            None => summed.push((kind.to_owned(), phase.seconds)),
        }
    }
    let phases: Vec<_> = summed
        .iter()
        .map(|(kind, seconds)| format!("{kind} {}", duration(*seconds)))
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

fn farm(farm: &FarmSummary) -> String {
    let cores: u32 = farm.nodes.iter().map(|n| u32::from(n.cores)).sum();
    let bytes = |of: fn(&NodeSummary) -> u64| farm.nodes.iter().map(of).sum::<u64>();
    let lost = farm.nodes.iter().filter(|n| n.lost.is_some()).count();
    let plural = |n: u64, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    let passes: Vec<&StageBytes> = farm.stages.iter().filter(|s| s.pass).collect();
    let mean = |of: fn(&Sums) -> u64| {
        passes.iter().map(|s| of(&s.bytes)).sum::<u64>() / (passes.len() as u64).max(1)
    };
    let each = format!(
        "; a pass on average: {} sent, {} received, {} of messages, {} from node to node",
        size::show(mean(|s| s.sent)),
        size::show(mean(|s| s.received)),
        size::show(mean(|s| s.control)),
        size::show(mean(|s| s.between_nodes)),
    );
    format!(
        "{} of {}{}; this machine sent {} and received {}{each}",
        plural(farm.nodes.len() as u64, "node"),
        plural(u64::from(cores), "core"),
        match lost {
            0 => String::new(),
            n => format!(", {n} lost on the way"),
        },
        size::show(bytes(|n| n.sent_bytes)),
        size::show(bytes(|n| n.received_bytes)),
    )
}

fn factors(summary: &Summary) -> String {
    let (m, n, k) = (summary.rows, summary.columns, summary.sigma.len());
    let centring = summary.centring.iter().flat_map(|c| &c.files);
    let more: String = centring.map(|name| format!("{name}, ")).collect();
    let files = match summary.which {
        Which::Usv => {
            format!("U.npy ({m} x {k}), S.npy ({k}), Vt.npy ({k} x {n}), rows.csv, columns.csv")
        }
        Which::Sv => format!("S.npy ({k}), Vt.npy ({k} x {n}), columns.csv"),
        Which::S => format!("S.npy ({k})"),
    };
    format!(
        "{}: {files}, {more}certificate.json, manifest.json",
        summary.directory.display()
    )
}

/// Three lines to paste: they are never broken.
fn numpy(summary: &Summary, page: &mut Page) {
    page.text.push('\n');
    page.bold("In Python");
    let directory = python_text(&summary.directory.display().to_string());
    page.line("  import numpy as np");
    page.line(&format!("  d = {directory}"));
    page.line(match summary.which {
        Which::Usv => "  U, S, Vt = (np.load(f\"{d}/{x}.npy\") for x in (\"U\", \"S\", \"Vt\"))",
        Which::Sv => "  S, Vt = (np.load(f\"{d}/{x}.npy\") for x in (\"S\", \"Vt\"))",
        Which::S => "  S = np.load(f\"{d}/S.npy\")",
    });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::summary::{Nearest, Neighbour, Orthogonality, Phase, Rank};

    fn summary(rank: usize) -> Summary {
        Summary {
            rows: 610,
            columns: 9724,
            nnz: 100_836,
            rank: Rank {
                requested: 50,
                got: rank as u32,
            },
            sigma: (0..rank).map(|i| 534.4201 / (1.0 + i as f64)).collect(),
            residuals: (0..rank).map(|i| 2.1e-7 * 1.2f64.powi(i as i32)).collect(),
            explained: (0..rank).map(|i| 0.21 / (1.0 + i as f64).powi(2)).collect(),
            orthogonality: Orthogonality {
                u: Some(2.4e-7),
                v: Some(3.6e-7),
            },
            passes: 10,
            pass_seconds: 0.25,
            phases: [("ingest", 0.031), ("factors", 0.28)]
                .map(|(name, seconds)| Phase {
                    name: name.into(),
                    seconds,
                })
                .to_vec(),
            seconds: 0.34,
            peak_memory: Some(38 << 20),
            directory: "/data/factors".into(),
            nearest: vec![Nearest {
                of: "Toy Story (1995)".into(),
                neighbours: [
                    ("Toy Story 2 (1999)", 0.914),
                    (
                        "Adventures of Priscilla, Queen of the Desert, The (1994)",
                        0.8,
                    ),
                ]
                .map(|(name, cosine)| Neighbour {
                    name: name.into(),
                    cosine,
                })
                .to_vec(),
            }],
            ..Summary::default()
        }
    }

    fn plain(summary: &Summary, width: usize) -> String {
        render(
            summary,
            Look {
                color: false,
                width,
            },
        )
    }

    #[test]
    fn a_wide_terminal() {
        assert_eq!(
            plain(&summary(50), 100),
            r#"  #    sigma  residual    share  together
  1  534.420    2.1e-7  21.00 %   21.00 %
  2  267.210    2.5e-7   5.25 %   26.25 %
  3  178.140    3.0e-7   2.33 %   28.58 %
  4  133.605    3.6e-7   1.31 %   29.90 %
  5  106.884    4.4e-7   0.84 %   30.74 %
  6   89.070    5.2e-7   0.58 %   31.32 %
  7   76.346    6.3e-7   0.43 %   31.75 %
  8   66.803    7.5e-7   0.33 %   32.08 %
  9   59.380    9.0e-7   0.26 %   32.34 %
 10   53.442    1.1e-6   0.21 %   32.55 %
...
 48   11.134    1.1e-3   0.01 %   34.11 %
 49   10.907    1.3e-3   0.01 %   34.12 %
 50   10.688    1.6e-3   0.01 %   34.13 %

Factored   610 rows x 9,724 columns, 100,836 entries (1.70 % of all)
Accuracy   worst residual 1.6e-3 (triplet 50); U and V orthonormal to 3.6e-7; 34.13 % of the sum of
           squares explained
Time       340 ms: ingest 31 ms, factors 280 ms; 10 passes at 4.0 million entries/s; at most 38 MiB
           of memory
Factors    /data/factors: U.npy (610 x 50), S.npy (50), Vt.npy (50 x 9724), rows.csv, columns.csv,
           certificate.json, manifest.json

In Python
  import numpy as np
  d = "/data/factors"
  U, S, Vt = (np.load(f"{d}/{x}.npy") for x in ("U", "S", "Vt"))

Nearest to Toy Story (1995)
  0.91  Toy Story 2 (1999)
  0.80  Adventures of Priscilla, Queen of the Desert, The (1994)
"#
        );
    }

    #[test]
    fn a_narrow_terminal() {
        assert_eq!(
            plain(&summary(50), 40),
            r#"  #    sigma  residual    share
  1  534.420    2.1e-7  21.00 %
  2  267.210    2.5e-7   5.25 %
  3  178.140    3.0e-7   2.33 %
  4  133.605    3.6e-7   1.31 %
  5  106.884    4.4e-7   0.84 %
  6   89.070    5.2e-7   0.58 %
  7   76.346    6.3e-7   0.43 %
  8   66.803    7.5e-7   0.33 %
  9   59.380    9.0e-7   0.26 %
 10   53.442    1.1e-6   0.21 %
...
 48   11.134    1.1e-3   0.01 %
 49   10.907    1.3e-3   0.01 %
 50   10.688    1.6e-3   0.01 %

Factored
  610 rows x 9,724 columns, 100,836
  entries (1.70 % of all)
Accuracy
  worst residual 1.6e-3 (triplet 50); U
  and V orthonormal to 3.6e-7; 34.13 %
  of the sum of squares explained
Time
  340 ms: ingest 31 ms, factors 280 ms;
  10 passes at 4.0 million entries/s; at
  most 38 MiB of memory
Factors
  /data/factors: U.npy (610 x 50), S.npy
  (50), Vt.npy (50 x 9724), rows.csv,
  columns.csv, certificate.json,
  manifest.json

In Python
  import numpy as np
  d = "/data/factors"
  U, S, Vt = (np.load(f"{d}/{x}.npy") for x in ("U", "S", "Vt"))

Nearest to Toy Story (1995)
  0.91  Toy Story 2 (1999)
  0.80  Adventures of Priscilla, Quee...
"#
        );
    }

    #[test]
    fn only_what_is_to_be_pasted_is_wider_than_the_terminal() {
        for width in [30, 40, 60, 80, 100, 200] {
            for line in plain(&summary(50), width).lines() {
                let pasted = line.starts_with("  U, S, Vt");
                assert!(pasted || line.chars().count() <= width, "{width}: {line}");
                assert_eq!(line, line.trim_end());
            }
        }
    }

    #[test]
    fn factors_that_are_not_there_are_not_spoken_of() {
        let mut without_u = summary(3);
        without_u.which = Which::Sv;
        without_u.orthogonality.u = None;
        let text = plain(&without_u, 100);
        assert!(text.contains("; V orthonormal to 3.6e-7"), "{text}");
        assert!(
            text.contains("factors: S.npy (3), Vt.npy (3 x 9724), columns.csv, cert"),
            "{text}"
        );
        assert!(text.contains("  S, Vt = (np.load"), "{text}");
        assert!(!text.contains("U.npy"), "{text}");
        without_u.which = Which::S;
        without_u.residuals.clear();
        let text = plain(&without_u, 100);
        assert!(text.contains("residuals not measured"), "{text}");
        assert!(text.contains("factors: S.npy (3), cert"), "{text}");
        assert!(text.contains("  S = np.load"), "{text}");
        assert!(!text.contains("Vt"), "{text}");
    }

    #[test]
    fn a_lower_rank_is_said_in_words() {
        let text = plain(&summary(3), 100);
        let said =
            "the matrix has rank 3, as far as can be told; so there are 3 triplets, not the 50";
        assert!(text.contains(said), "{text}");
        assert!(plain(&summary(0), 100).contains("the matrix is zero"));
    }

    #[test]
    fn colour_is_only_where_it_is_wanted() {
        assert!(!plain(&summary(3), 80).contains('\x1b'));
        let look = Look {
            color: true,
            width: 80,
        };
        assert!(render(&summary(3), look).contains("\x1b[1m"));
    }
}
