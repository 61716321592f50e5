//! Problems of a job file, each with its place, what was expected, and what may have been meant.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde_json::json;

use crate::failure::ExitCode;

/// A text that problems are found in, under the name that people know it by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    pub name: String,
    pub text: String,
}

/// One problem. `title` says what is wrong, `label` stands beside the caret and says what was expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    pub span: Range<usize>,
    pub title: String,
    pub label: String,
    /// Other places that have a part in it, each with what stands beside it.
    pub also: Vec<(Range<usize>, String)>,
    pub help: Option<String>,
}

impl Problem {
    pub fn new(span: Range<usize>, title: impl Into<String>, label: impl Into<String>) -> Self {
        Self {
            span,
            title: title.into(),
            label: label.into(),
            also: Vec::new(),
            help: None,
        }
    }

    #[must_use]
    pub fn also(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.also.push((span, label.into()));
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// How a text is to be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    pub color: bool,
    /// Columns of the terminal.
    pub width: usize,
}

impl Look {
    pub const PLAIN: Self = Self {
        color: false,
        width: 80,
    };
}

/// Everything that is wrong with one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problems {
    pub source: Source,
    pub list: Vec<Problem>,
    pub code: ExitCode,
}

impl Problems {
    /// All problems in the order of the file, each with file, line, column, the line itself and a caret.
    pub fn render(&self, look: Look) -> String {
        let renderer = if look.color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let renderer = renderer.term_width(look.width.max(40));
        let mut text = String::new();
        for problem in self.sorted() {
            let span = self.span_within(&problem.span);
            let also = problem.also.iter().map(|(span, label)| {
                AnnotationKind::Context
                    .span(self.span_within(span))
                    .label(label)
            });
            let mut group = Level::ERROR.primary_title(&problem.title).element(
                Snippet::source(&self.source.text)
                    .path(&self.source.name)
                    .annotation(AnnotationKind::Primary.span(span).label(&problem.label))
                    .annotations(also),
            );
            if let Some(help) = &problem.help {
                group = group.element(Level::HELP.message(help));
            }
            text.push_str(&renderer.render(&[group]));
            text.push_str("\n\n");
        }
        let name = &self.source.name;
        let tail = match self.list.len() {
            1 => format!("{name}: 1 problem; nothing was run\n"),
            count => format!("{name}: {count} problems; nothing was run\n"),
        };
        text.push_str(&tail);
        text
    }

    /// The same for scripts.
    pub fn to_json(&self) -> serde_json::Value {
        let problems: Vec<_> = self
            .sorted()
            .into_iter()
            .map(|problem| {
                let (line, column) = self.place(problem.span.start);
                let also: Vec<_> = problem
                    .also
                    .iter()
                    .map(|(span, label)| {
                        let (line, column) = self.place(span.start);
                        json!({ "line": line, "column": column, "label": label })
                    })
                    .collect();
                json!({
                    "line": line,
                    "column": column,
                    "message": problem.title,
                    "expected": problem.label,
                    "also": also,
                    "help": problem.help,
                })
            })
            .collect();
        json!({ "file": self.source.name, "problems": problems })
    }

    /// Line and column, both from 1, columns counted in characters.
    pub fn place(&self, offset: usize) -> (usize, usize) {
        let before = &self.source.text[..self.span_start(offset)];
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        (line, before[start..].chars().count() + 1)
    }

    fn sorted(&self) -> Vec<&Problem> {
        let mut list: Vec<_> = self.list.iter().collect();
        list.sort_by_key(|problem| (problem.span.start, problem.span.end));
        list
    }

    fn span_start(&self, offset: usize) -> usize {
        let mut start = offset.min(self.source.text.len());
        while !self.source.text.is_char_boundary(start) {
            start -= 1;
        }
        start
    }

    /// The span cut to its first line, so that a caret never spans a page.
    fn span_within(&self, span: &Range<usize>) -> Range<usize> {
        let text = &self.source.text;
        let start = self.span_start(span.start);
        let line = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let mut end = span.end.clamp(start, line);
        while !text.is_char_boundary(end) {
            end += 1;
        }
        start..end
    }
}

/// The candidate that `word` is most likely a misspelling of, if any comes near.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let normal = |text: &str| text.replace(['-', ' ', '.'], "_");
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let other = candidate.to_lowercase();
            let distance = strsim::damerau_levenshtein(&normal(&lower), &normal(&other));
            let longest = word.chars().count().max(candidate.chars().count());
            let contained = lower.len() >= 4
                && other.len() >= 4
                && (other.contains(&lower) || lower.contains(&other));
            // A third of the letters may be wrong.
            (distance * 3 <= longest || contained).then_some((distance, candidate))
        })
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_or_none() {
        let keys = ["rank", "oversample", "power_iterations", "seed"];
        for (word, found) in [
            ("rnak", Some("rank")),
            ("Rank", Some("rank")),
            ("oversampling", Some("oversample")),
            ("power-iterations", Some("power_iterations")),
            ("iterations", Some("power_iterations")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(word, keys), found, "{word}");
        }
    }

    #[test]
    fn places_are_counted_in_characters() {
        let problems = Problems {
            source: Source {
                name: "f".into(),
                text: "a = \"ü\"\nb = é é\n".into(),
            },
            list: vec![],
            code: ExitCode::Job,
        };
        assert_eq!(problems.place(0), (1, 1));
        assert_eq!(problems.place(6), (1, 6));
        assert_eq!(problems.place(9), (2, 1));
        assert_eq!(problems.place(15), (2, 6));
        assert_eq!(problems.place(1000), (3, 1));
    }
}
