//! The job file as it is written: every value with its place, nothing filled in.

use std::ops::Range;
use std::time::Duration;

use shared::net::discovery::HostPort;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Problem, nearest};
use super::resolved::{
    Center, Duplicates, Field, Method, Otherwise, Precision, Scale, ToleranceKind, Which,
};
use super::size::{self, Memory};
use super::span;

/// A job file. What is absent is `None`.
#[derive(Clone, Debug, Default)]
pub struct JobFile {
    pub matrix: Matrix,
    pub factor: Factor,
    pub output: Output,
    pub resources: Resources,
    pub farm: Farm,
    pub report: Report,
}

#[derive(Clone, Debug, Default)]
pub struct Matrix {
    /// The header `[matrix]`.
    pub header: Option<Range<usize>>,
    pub path: Option<Spanned<String>>,
    pub format: Option<Spanned<()>>,
    pub rows: Option<Spanned<Field>>,
    pub columns: Option<Spanned<Field>>,
    pub values: Option<Spanned<Field>>,
    pub duplicates: Option<Spanned<Duplicates>>,
}

#[derive(Clone, Debug, Default)]
pub struct Factor {
    pub rank: Option<Spanned<u32>>,
    pub energy: Option<Spanned<f64>>,
    pub oversample: Option<Spanned<u32>>,
    pub tolerance: Option<Spanned<f64>>,
    pub tolerance_kind: Option<Spanned<ToleranceKind>>,
    pub max_reads: Option<Spanned<u32>>,
    pub power_iterations: Option<Spanned<u32>>,
    pub method: Option<Spanned<Method>>,
    pub block: Option<Spanned<u32>>,
    pub basis: Option<Spanned<u32>>,
    pub precision: Option<Spanned<Precision>>,
    pub seed: Option<Spanned<u64>>,
    pub which: Option<Spanned<Which>>,
    pub center: Option<Spanned<Center>>,
    pub scale: Option<Spanned<Scale>>,
    pub warm_start: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Default)]
pub struct Output {
    pub directory: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Default)]
pub struct Resources {
    pub memory: Option<Spanned<Memory>>,
    pub cores: Option<Spanned<usize>>,
    pub cache: Option<Spanned<String>>,
    pub cache_max: Option<Spanned<u64>>,
}

#[derive(Clone, Debug, Default)]
pub struct Farm {
    pub discover: Option<Spanned<bool>>,
    pub nodes: Option<Vec<Spanned<HostPort>>>,
    pub ssh: Option<Vec<Spanned<String>>>,
    pub window: Option<Spanned<Duration>>,
    pub at_least: Option<Spanned<u32>>,
    pub otherwise: Option<Spanned<Otherwise>>,
    pub interface: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    pub names: Option<Names>,
    pub nearest: Option<Vec<Spanned<String>>>,
}

#[derive(Clone, Debug)]
pub struct Names {
    pub path: Spanned<String>,
    pub label: Option<Spanned<Field>>,
    pub name: Option<Spanned<Field>>,
}

/// Less than this is a slip of the unit (`memory = 4`).
const MEMORY_MIN: u64 = 1 << 20;

/// A bound that only an overflow is to be kept off by: not worth telling.
const WIDE: u64 = u32::MAX as u64;

const SECTIONS: &[(&str, &[&str])] = &[
    (
        "matrix",
        &["path", "format", "rows", "columns", "values", "duplicates"],
    ),
    (
        "factor",
        &[
            "rank",
            "energy",
            "oversample",
            "tolerance",
            "tolerance_kind",
            "max_reads",
            "power_iterations",
            "method",
            "block",
            "basis",
            "precision",
            "seed",
            "which",
            "center",
            "scale",
            "warm_start",
        ],
    ),
    ("output", &["directory"]),
    ("resources", &["memory", "cores", "cache", "cache_max"]),
    (
        "farm",
        &[
            "discover",
            "nodes",
            "ssh",
            "window",
            "at_least",
            "otherwise",
            "interface",
        ],
    ),
    ("report", &["names", "nearest"]),
];

/// Words of other programs for what is called otherwise here.
const SYNONYMS: &[(&str, &str)] = &[
    ("k", "rank"),
    ("components", "rank"),
    ("n_components", "rank"),
    ("n_singular_values", "rank"),
    ("nsv", "rank"),
    ("nu", "rank"),
    ("nv", "rank"),
    ("triplets", "rank"),
    ("variance", "energy"),
    ("explained", "energy"),
    ("explained_variance", "energy"),
    ("explained_variance_ratio", "energy"),
    ("share", "energy"),
    ("p", "oversample"),
    ("n_oversamples", "oversample"),
    ("tol", "tolerance"),
    ("rtol", "tolerance"),
    ("eps", "tolerance"),
    ("epsilon", "tolerance"),
    ("accuracy", "tolerance"),
    ("residual", "tolerance"),
    ("svtol", "tolerance"),
    ("tol_kind", "tolerance_kind"),
    ("criterion", "tolerance_kind"),
    ("maxiter", "max_reads"),
    ("max_iter", "max_reads"),
    ("maxit", "max_reads"),
    ("maxitr", "max_reads"),
    ("max_iterations", "max_reads"),
    ("passes", "max_reads"),
    ("max_passes", "max_reads"),
    ("q", "power_iterations"),
    ("n_iter", "power_iterations"),
    ("n_iters", "power_iterations"),
    ("niter", "power_iterations"),
    ("iterated_power", "power_iterations"),
    ("n_power_iter", "power_iterations"),
    ("n_power_iterations", "power_iterations"),
    ("solver", "method"),
    ("svd_solver", "method"),
    ("algorithm", "method"),
    ("block_size", "block"),
    ("ncv", "basis"),
    ("work", "basis"),
    ("subspace", "basis"),
    ("dtype", "precision"),
    ("random_state", "seed"),
    ("rng", "seed"),
    ("return_singular_vectors", "which"),
    ("compute_uv", "which"),
    ("outputs", "which"),
    ("with_mean", "center"),
    ("centre", "center"),
    ("demean", "center"),
    ("subtract_mean", "center"),
    ("with_std", "scale"),
    ("v0", "warm_start"),
    ("x0", "warm_start"),
    ("init", "warm_start"),
    ("initial", "warm_start"),
    ("start", "warm_start"),
    ("standardize", "scale"),
    ("normalize", "scale"),
    ("unit_variance", "scale"),
    ("file", "path"),
    ("input", "path"),
    ("users", "rows"),
    ("user", "rows"),
    ("items", "columns"),
    ("item", "columns"),
    ("rating", "values"),
    ("ratings", "values"),
    ("dir", "directory"),
    ("folder", "directory"),
    ("path", "directory"),
    ("threads", "cores"),
    ("cpus", "cores"),
    ("ram", "memory"),
    ("hosts", "nodes"),
    ("workers", "nodes"),
    ("machines", "nodes"),
    ("timeout", "window"),
    ("wait", "window"),
    ("min_nodes", "at_least"),
    ("minimum", "at_least"),
    ("fallback", "otherwise"),
    ("nic", "interface"),
];

/// Least of `max_reads`: fewer leave no room between the first read and the last.
pub const READS_MIN: u32 = 4;

/// Whether a tolerance is one: not a number is none, either.
pub fn is_tolerance(number: f64) -> bool {
    number > 0.0 && number < 1.0
}

/// Whether a share of the sum of squares is one.
pub fn is_share(number: f64) -> bool {
    number > 0.0 && number <= 1.0
}

/// Reads the text of a job file and adds every problem found to `problems`.
pub fn read(text: &str, problems: &mut Vec<Problem>) -> JobFile {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        let label = if line_of(text, span.start).trim_end().ends_with('=') {
            "expected a value after `=`".into()
        } else {
            error.message().trim().replace('\n', "; ")
        };
        problems.push(Problem::new(span, "this is not valid TOML", label));
    }
    let syntax = problems.len();
    let mut file = JobFile::default();
    let root = document.get_ref();
    for (key, value) in root.iter() {
        let name: &str = key.get_ref();
        let table = match value.get_ref() {
            DeValue::Table(table) => table,
            other => {
                problems.push(outside(key.span(), name, other, &value.span()));
                continue;
            }
        };
        let mut section = Section {
            name,
            table,
            problems,
        };
        match name {
            "matrix" => file.matrix = section.matrix(value.span()),
            "factor" => file.factor = section.factor(),
            "output" => file.output = section.output(),
            "resources" => file.resources = section.resources(),
            "farm" => file.farm = section.farm(),
            "report" => file.report = section.report(),
            _ => {
                let names = SECTIONS.iter().map(|(name, _)| *name);
                let problem = match nearest(name, names) {
                    Some(near) => Problem::new(
                        key.span(),
                        format!("unknown section [{name}]"),
                        format!("did you mean [{near}]?"),
                    ),
                    None => Problem::new(
                        key.span(),
                        format!("unknown section [{name}]"),
                        "expected one of [matrix], [factor], [output], [resources], [farm], [report]",
                    ),
                };
                problems.push(problem);
            }
        }
    }
    // What the parser made of a broken line is nobody's meaning.
    let broken: Vec<_> = errors
        .iter()
        .map(|error| line_number(text, error.span().map_or(0, |span| span.start)))
        .collect();
    let mut at = 0;
    problems.retain(|problem| {
        at += 1;
        at <= syntax || !broken.contains(&line_number(text, problem.span.start))
    });
    // A syntax error hides what follows it, a misspelt section what it holds: what then seems to be missing may be there.
    let misspelt = problems
        .iter()
        .any(|problem| problem.label == "did you mean [matrix]?");
    if errors.is_empty() && !misspelt {
        if file.matrix.header.is_none() && !root.contains_key("matrix") {
            problems.push(
                Problem::new(
                    0..0,
                    "the section [matrix] is missing",
                    "expected [matrix] with the path of the data somewhere in this file",
                )
                .help("the shortest job is:  [matrix]  and below it  path = \"ratings.csv\""),
            );
        } else if let Some(header) = &file.matrix.header
            && file.matrix.path.is_none()
            && !problems.iter().any(|p| p.title.contains("[matrix] path"))
        {
            problems.push(Problem::new(
                header.clone(),
                "[matrix] has no `path`",
                "expected a line such as  path = \"ratings.csv\"  in this section",
            ));
        }
    }
    file
}

fn line_of(text: &str, offset: usize) -> &str {
    text.lines().nth(line_number(text, offset)).unwrap_or("")
}

/// The line that an offset lies in, from 0.
fn line_number(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.iter().filter(|&&byte| byte == b'\n').count()
}

/// A key that stands before the first section, or a section that is no table.
fn outside(span: Range<usize>, name: &str, value: &DeValue<'_>, at: &Range<usize>) -> Problem {
    if SECTIONS.iter().any(|(section, _)| *section == name) {
        return Problem::new(
            at.clone(),
            format!("[{name}] must be a section"),
            format!("expected a section, found {}", kind(value)),
        )
        .help(format!(
            "write  [{name}]  on a line of its own, its keys below it"
        ));
    }
    let home = SECTIONS
        .iter()
        .find(|(_, keys)| keys.contains(&name))
        .map(|(section, _)| *section);
    match home {
        Some(home) => Problem::new(
            span,
            format!("`{name}` stands outside any section"),
            format!("it belongs below [{home}]"),
        ),
        None => {
            let keys = SECTIONS.iter().flat_map(|(_, keys)| keys.iter().copied());
            let label = match nearest(name, keys) {
                Some(near) => format!("did you mean `{near}`, below its section?"),
                None => "expected a section such as [matrix]".into(),
            };
            Problem::new(
                span,
                format!("unknown key `{name}` outside any section"),
                label,
            )
        }
    }
}

/// What a value is, in words.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text in quotes",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A number, whole or not. `None`: it is something else.
fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Float(number) => number.as_str().replace('_', "").parse().ok(),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            let whole = i64::from_str_radix(&digits, number.radix()).ok()?;
            Some(whole as f64)
        }
        _ => None,
    }
}

/// A number between 0 and 1, such as no whole number is.
fn share(value: &DeValue<'_>) -> Option<f64> {
    number(value).filter(|&number| is_tolerance(number))
}

/// `a, b or c`
fn listed(words: &[String], or: &str) -> String {
    match words {
        [] => String::new(),
        [only] => only.clone(),
        [start @ .., last] => format!("{} {or} {last}", start.join(", ")),
    }
}

/// A section being read: hands out values by key and collects what is wrong with them.
struct Section<'a, 'i> {
    /// With dots where it is nested: `report.names`.
    name: &'a str,
    table: &'a DeTable<'i>,
    problems: &'a mut Vec<Problem>,
}

impl<'a, 'i> Section<'a, 'i> {
    fn matrix(&mut self, header: Range<usize>) -> Matrix {
        self.unknown_keys();
        let path = match self.value("path").map(|v| (v.span(), v.get_ref())) {
            Some((span, DeValue::Array(_))) => {
                self.problems.push(
                    Problem::new(
                        span,
                        "[matrix] path is a list",
                        "expected the path of one file in quotes",
                    )
                    .help("this version reads one file per job; join the files into one first"),
                );
                None
            }
            _ => self.text("path"),
        };
        Matrix {
            header: Some(header),
            path,
            format: self.choice("format", &[("ratings", ())], |word| {
                let word = word.to_lowercase();
                ["csv", "tsv", "txt", "dat", "text", "gz", "zst"]
                    .contains(&word.as_str())
                    .then(|| "delimited text of any kind is \"ratings\": delimiter and compression are found out".into())
            }),
            rows: self.field("rows"),
            columns: self.field("columns"),
            values: self.field("values"),
            duplicates: self.choice(
                "duplicates",
                &[
                    ("error", Duplicates::Error),
                    ("sum", Duplicates::Sum),
                    ("mean", Duplicates::Mean),
                    ("last", Duplicates::Last),
                ],
                |word| {
                    (word == "first").then(|| {
                        "the line that stands last can be kept (\"last\"), not the first".into()
                    })
                },
            ),
        }
    }

    fn factor(&mut self) -> Factor {
        self.unknown_keys();
        let method = self.choice("method", &Method::WORDS, |word| {
            let near = match word.to_lowercase().as_str() {
                "lanczos" | "arpack" | "irlba" | "propack" | "lobpcg" => "krylov",
                "full" | "dense" | "lapack" => "exact",
                "covariance_eigh" | "covariance" | "eigh" | "eig" => "gram",
                "randomized" | "random" | "halko" | "power" => {
                    return Some(
                        "a sketch and a fixed number of passes: leave `method` out and say `power_iterations = 4`"
                            .into(),
                    );
                }
                _ => return None,
            };
            Some(format!("that is {near:?} here"))
        });
        self.rank_or_energy();
        self.tolerance_or_power_iterations(method.as_ref());
        Factor {
            rank: self.rank(),
            energy: self.real(
                "energy",
                "a number more than 0 and at most 1, such as 0.9",
                is_share,
            ),
            oversample: self.whole("oversample", 0, WIDE).map(narrow),
            tolerance: self.real(
                "tolerance",
                "a number more than 0 and less than 1, such as 1e-2",
                is_tolerance,
            ),
            tolerance_kind: self.choice("tolerance_kind", &ToleranceKind::WORDS, |word| match word
                .to_lowercase()
                .as_str()
            {
                "vector" | "vectors" | "triplet" | "triplets" => {
                    Some("that is \"residual\" here".into())
                }
                "value" | "values" | "singular values" => Some("that is \"sigma\" here".into()),
                _ => None,
            }),
            max_reads: self.whole("max_reads", READS_MIN.into(), WIDE).map(narrow),
            power_iterations: self.whole("power_iterations", 0, WIDE).map(narrow),
            method,
            block: self.whole("block", 1, WIDE).map(narrow),
            basis: self.whole("basis", 2, WIDE).map(narrow),
            precision: self.choice(
                "precision",
                &[("f32", Precision::F32), ("f64", Precision::F64)],
                |word| match word.to_lowercase().as_str() {
                    "single" | "float" | "float32" => Some("that is \"f32\" here".into()),
                    "double" | "float64" => Some("that is \"f64\" here".into()),
                    _ => None,
                },
            ),
            seed: self.whole("seed", 0, u64::MAX),
            which: self.choice("which", &Which::WORDS, |word| {
                match word.to_lowercase().as_str() {
                    "lm" | "la" => Some(
                        "the largest singular values are found in any case; this says which factors are written"
                            .into(),
                    ),
                    "sm" | "sa" => Some("only the largest singular values are found".into()),
                    "v" | "vt" | "vh" => Some("V with its singular values is \"sv\"".into()),
                    "u" | "us" => Some("U comes with all the others: \"usv\"".into()),
                    "both" | "all" => Some("that is \"usv\" here".into()),
                    _ => None,
                }
            }),
            center: self.switch("center", &Center::WORDS, "columns", |word| {
                match word.to_lowercase().as_str() {
                    "observed" => Some(
                        "say the means of what: \"observed-columns\", \"observed-rows\" or \"observed-both\""
                            .into(),
                    ),
                    "double" | "all" => Some("that is \"both\" here".into()),
                    "bias" | "biases" | "baseline" => Some("that is \"observed-both\" here".into()),
                    _ => None,
                }
            }),
            scale: self.switch("scale", &Scale::WORDS, "columns", |word| {
                match word.to_lowercase().as_str() {
                    "std" | "variance" | "unit" | "unit-variance" => {
                        Some("that is \"columns\" here".into())
                    }
                    "rows" | "both" => Some("only columns can be scaled".into()),
                    _ => None,
                }
            }),
            warm_start: self.text("warm_start"),
        }
    }

    /// A choice that other programs make with true and false; `yes` is what they mean by true.
    fn switch<T: Copy>(
        &mut self,
        key: &str,
        choices: &[(&str, T)],
        yes: &str,
        hint: impl Fn(&str) -> Option<String>,
    ) -> Option<Spanned<T>> {
        let problems = self.problems.len();
        let choice = self.choice(key, choices, hint);
        if let Some(DeValue::Boolean(truth)) = self.value(key).map(Spanned::get_ref)
            && let Some(problem) = self.problems.get_mut(problems)
        {
            let word = if *truth { yes } else { "none" };
            problem.help = Some(format!("that is  {key} = {word:?}  here"));
        }
        choice
    }

    fn rank(&mut self) -> Option<Spanned<u32>> {
        let problems = self.problems.len();
        let rank = self.whole("rank", 1, WIDE).map(narrow);
        // Whoever writes a share there means what scikit-learn does.
        if let Some(share) = self.value("rank").and_then(|value| share(value.get_ref()))
            && let Some(problem) = self.problems.get_mut(problems)
        {
            problem.help = Some(format!(
                "for as many triplets as explain that share of the sum of squares write  energy = {share}"
            ));
        }
        rank
    }

    fn rank_or_energy(&mut self) {
        if let (Some(rank), Some(energy)) = (self.key("rank"), self.key("energy")) {
            self.problems.push(
                Problem::new(
                    energy,
                    "[factor] rank and energy exclude each other",
                    "as many triplets as explain this share",
                )
                .also(rank, "so many triplets")
                .help("delete `rank` or `energy`: one of the two says how many triplets there will be"),
            );
        }
    }

    fn tolerance_or_power_iterations(&mut self, method: Option<&Spanned<Method>>) {
        let Some(iterations) = self.key("power_iterations") else {
            return;
        };
        let others: Vec<_> = ["tolerance", "tolerance_kind", "max_reads", "method"]
            .into_iter()
            .filter(|&key| key != "method" || method.is_some_and(|m| *m.get_ref() != Method::Auto))
            .filter_map(|key| Some((key, self.key(key)?)))
            .collect();
        if others.is_empty() {
            return;
        }
        let plain: Vec<_> = others.iter().map(|(key, _)| (*key).to_owned()).collect();
        let quoted: Vec<_> = plain.iter().map(|key| format!("`{key}`")).collect();
        let mut problem = Problem::new(
            iterations,
            format!(
                "[factor] power_iterations and {} exclude each other",
                listed(&plain, "and")
            ),
            "this many passes, however good the triplets",
        );
        for (key, span) in others {
            let label = if key == "method" {
                "a method that counts no power iterations"
            } else {
                "as many passes as it takes"
            };
            problem = problem.also(span, label);
        }
        self.problems.push(problem.help(format!(
            "delete `power_iterations` to work until a tolerance is reached, or {} to do just so many iterations",
            listed(&quoted, "and")
        )));
    }

    fn output(&mut self) -> Output {
        self.unknown_keys();
        Output {
            directory: self.text("directory"),
        }
    }

    fn resources(&mut self) -> Resources {
        self.unknown_keys();
        let memory = self.size("memory", size::parse_memory, Memory::Bytes);
        if let Some(memory) = &memory
            && let Memory::Bytes(bytes) = *memory.get_ref()
            && bytes < MEMORY_MIN
        {
            let problem = Problem::new(
                memory.span(),
                "[resources] memory is too little",
                format!("this says {bytes} bytes; expected at least 1 MiB"),
            );
            let problem = if (1..4096).contains(&bytes) {
                problem.help(format!("for gigabytes write  memory = \"{bytes} GiB\""))
            } else {
                problem
            };
            self.problems.push(problem);
        }
        Resources {
            memory,
            cores: self
                .whole("cores", 1, 1 << 16)
                .map(|cores| Spanned::new(cores.span(), cores.into_inner() as usize)),
            cache: self.text("cache"),
            cache_max: self.size("cache_max", size::parse, |bytes| bytes),
        }
    }

    fn farm(&mut self) -> Farm {
        self.unknown_keys();
        Farm {
            discover: self.truth("discover"),
            nodes: self.list("nodes", "[\"big1\", \"10.0.0.5:24741\"]", str::parse),
            ssh: self.list("ssh", "[\"alice@big1\", \"big2\"]", destination),
            window: self.time("window"),
            at_least: self.whole("at_least", 1, 1 << 16).map(narrow),
            otherwise: self.choice(
                "otherwise",
                &[("embedded", Otherwise::Embedded), ("fail", Otherwise::Fail)],
                |word| match word.to_lowercase().as_str() {
                    "local" | "alone" => Some("that is \"embedded\" here".into()),
                    "error" | "exit" | "stop" => Some("that is \"fail\" here".into()),
                    _ => None,
                },
            ),
            interface: self.word("interface", "an interface such as \"eth0\""),
        }
    }

    fn report(&mut self) -> Report {
        self.unknown_keys();
        let names = match self.value("names").map(|v| (v.span(), v.get_ref())) {
            None => None,
            Some((span, DeValue::Table(table))) => {
                let mut names = Section {
                    name: "report.names",
                    table,
                    problems: self.problems,
                };
                names.names(&span)
            }
            Some((span, other)) => {
                self.problems.push(Problem::new(
                    span,
                    "[report] names has the wrong type",
                    format!(
                        "expected {{ path = \"movies.csv\", label = \"movieId\", name = \"title\" }}, found {}",
                        kind(other)
                    ),
                ));
                None
            }
        };
        let nearest = self.list("nearest", "[\"Heat (1995)\"]", |text| Ok(text.to_owned()));
        Report { names, nearest }
    }

    fn names(&mut self, span: &Range<usize>) -> Option<Names> {
        let known = ["path", "label", "name"];
        for (key, _) in self.table.iter() {
            let word: &str = key.get_ref();
            if !known.contains(&word) {
                self.problems
                    .push(unknown(key.span(), word, self.name, &known, None));
            }
        }
        let problems = self.problems.len();
        let path = self.text("path");
        if path.is_none() && self.problems.len() == problems {
            self.problems.push(Problem::new(
                span.clone(),
                "[report] names has no `path`",
                "expected { path = \"movies.csv\", label = \"movieId\", name = \"title\" }",
            ));
        }
        let (label, name) = (self.field("label"), self.field("name"));
        path.map(|path| Names { path, label, name })
    }

    fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
        let table: &'a DeTable<'i> = self.table;
        table.get(key)
    }

    /// Where a key stands, whatever its value.
    fn key(&self, key: &str) -> Option<Range<usize>> {
        self.table.get_key_value(key).map(|(key, _)| key.span())
    }

    fn wrong_type(&mut self, key: &str, span: Range<usize>, expected: &str, found: &DeValue<'_>) {
        let mut problem = Problem::new(
            span,
            format!("[{}] {key} has the wrong type", self.name),
            format!("expected {expected}, found {}", kind(found)),
        );
        if let DeValue::String(text) = found
            && text.trim().parse::<f64>().is_ok()
        {
            problem = problem.help(format!(
                "numbers stand without quotes:  {key} = {}",
                text.trim()
            ));
        }
        self.problems.push(problem);
    }

    fn text(&mut self, key: &str) -> Option<Spanned<String>> {
        let value = self.value(key)?;
        let span = value.span();
        match value.get_ref() {
            DeValue::String(text) if text.trim().is_empty() => {
                self.problems.push(Problem::new(
                    span,
                    format!("[{}] {key} is empty", self.name),
                    "expected a path",
                ));
                None
            }
            DeValue::String(text) if text.contains('\0') => {
                self.problems.push(Problem::new(
                    span,
                    format!("[{}] {key} is no path", self.name),
                    "a path cannot hold the character NUL",
                ));
                None
            }
            DeValue::String(text) => Some(Spanned::new(span, text.to_string())),
            other => {
                self.wrong_type(key, span, "a path in quotes", other);
                None
            }
        }
    }

    fn word(&mut self, key: &str, expected: &str) -> Option<Spanned<String>> {
        let value = self.value(key)?;
        let span = value.span();
        match value.get_ref() {
            DeValue::String(text) if text.trim().is_empty() => {
                self.problems.push(Problem::new(
                    span,
                    format!("[{}] {key} is empty", self.name),
                    format!("expected {expected}"),
                ));
                None
            }
            DeValue::String(text) => Some(Spanned::new(span, text.trim().to_owned())),
            other => {
                self.wrong_type(key, span, expected, other);
                None
            }
        }
    }

    fn truth(&mut self, key: &str) -> Option<Spanned<bool>> {
        let value = self.value(key)?;
        let span = value.span();
        match value.get_ref() {
            DeValue::Boolean(truth) => Some(Spanned::new(span, *truth)),
            other => {
                self.wrong_type(key, span, "true or false", other);
                None
            }
        }
    }

    /// Each item is read by `parse`, and its problems stand where it stands.
    fn list<T>(
        &mut self,
        key: &str,
        example: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<Spanned<T>>> {
        let (span, value) = self.value(key).map(|v| (v.span(), v.get_ref()))?;
        let DeValue::Array(list) = value else {
            self.problems.push(Problem::new(
                span,
                format!("[{}] {key} has the wrong type", self.name),
                format!("expected a list such as {example}, found {}", kind(value)),
            ));
            return None;
        };
        let mut found = Vec::new();
        for item in list.iter() {
            match item.get_ref() {
                DeValue::String(text) => match parse(text) {
                    Ok(read) => found.push(Spanned::new(item.span(), read)),
                    Err(reason) => self.problems.push(Problem::new(
                        item.span(),
                        format!("[{}] {key} cannot hold {text:?}", self.name),
                        reason,
                    )),
                },
                other => self.problems.push(Problem::new(
                    item.span(),
                    format!("[{}] {key} has an item of the wrong type", self.name),
                    format!("expected text in quotes, found {}", kind(other)),
                )),
            }
        }
        Some(found)
    }

    fn time(&mut self, key: &str) -> Option<Spanned<Duration>> {
        let value = self.value(key)?;
        let span = value.span();
        match value.get_ref() {
            DeValue::String(text) => match span::parse(text) {
                Ok(time) => return Some(Spanned::new(span, time)),
                Err(reason) => self.problems.push(Problem::new(
                    span,
                    format!("[{}] {key} is not a time", self.name),
                    reason,
                )),
            },
            DeValue::Integer(number) => self.problems.push(
                Problem::new(
                    span,
                    format!("[{}] {key} has no unit", self.name),
                    "expected a time such as \"3 s\"",
                )
                .help(format!(
                    "for seconds write  {key} = \"{} s\"",
                    number.as_str()
                )),
            ),
            other => self.wrong_type(key, span, "a time such as \"3 s\"", other),
        }
        None
    }

    fn field(&mut self, key: &str) -> Option<Spanned<Field>> {
        let value = self.value(key)?;
        let span = value.span();
        let problem = match value.get_ref() {
            DeValue::String(name) if !name.is_empty() => {
                return Some(Spanned::new(span, Field::Name(name.to_string())));
            }
            DeValue::String(_) => "expected a name from the header, or a number from 1".into(),
            DeValue::Integer(number) => {
                match u64::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
                    Ok(0) => "fields are counted from 1".into(),
                    Ok(number) if number <= 1 << 16 => {
                        return Some(Spanned::new(span, Field::Number(number as usize)));
                    }
                    Ok(_) => "expected a number from 1 to 65536".into(),
                    Err(_) => "fields are counted from 1".into(),
                }
            }
            other => {
                self.wrong_type(
                    key,
                    span,
                    "a name from the header or a number from 1",
                    other,
                );
                return None;
            }
        };
        let problem: String = problem;
        self.problems.push(Problem::new(
            span,
            format!("[{}] {key} names no field", self.name),
            problem,
        ));
        None
    }

    fn whole(&mut self, key: &str, min: u64, max: u64) -> Option<Spanned<u64>> {
        let value = self.value(key)?;
        let span = value.span();
        let range = match (min, max) {
            (min, WIDE..) => format!("a whole number, {min} or more"),
            (min, max) => format!("a whole number from {min} to {max}"),
        };
        let number = match value.get_ref() {
            DeValue::Integer(number) => {
                u64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
            }
            other => {
                self.wrong_type(key, span, &range, other);
                return None;
            }
        };
        match number {
            Some(number) if (min..=max).contains(&number) => Some(Spanned::new(span, number)),
            _ => {
                self.problems.push(Problem::new(
                    span,
                    format!("[{}] {key} is out of range", self.name),
                    if matches!(number, Some(number) if number > max) {
                        format!("expected at most {max}")
                    } else {
                        format!("expected {range}")
                    },
                ));
                None
            }
        }
    }

    /// A number that may have a fraction.
    fn real(
        &mut self,
        key: &str,
        expected: &str,
        fits: impl Fn(f64) -> bool,
    ) -> Option<Spanned<f64>> {
        let value = self.value(key)?;
        let span = value.span();
        let Some(number) = number(value.get_ref()) else {
            self.wrong_type(key, span, expected, value.get_ref());
            return None;
        };
        if fits(number) {
            return Some(Spanned::new(span, number));
        }
        let mut problem = Problem::new(
            span,
            format!("[{}] {key} is out of range", self.name),
            format!("expected {expected}"),
        );
        if (1.0..100.0).contains(&number) {
            let share = (number / 100.0) as f32;
            problem = problem.help(format!("for {number} % write  {key} = {share}"));
        }
        self.problems.push(problem);
        None
    }

    fn size<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
        bytes: impl Fn(u64) -> T,
    ) -> Option<Spanned<T>> {
        let value = self.value(key)?;
        let span = value.span();
        let problem: String = match value.get_ref() {
            DeValue::String(text) => match parse(text) {
                Ok(size) => return Some(Spanned::new(span, size)),
                Err(reason) => reason,
            },
            DeValue::Integer(number) => {
                match u64::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
                    Ok(number) => return Some(Spanned::new(span, bytes(number))),
                    Err(_) if number.as_str().starts_with('-') => {
                        "a size cannot be negative".into()
                    }
                    Err(_) => "more bytes than any machine has".into(),
                }
            }
            other => {
                let expected = "a size such as \"4 GiB\" or a whole number of bytes";
                self.wrong_type(key, span, expected, other);
                return None;
            }
        };
        self.problems.push(Problem::new(
            span,
            format!("[{}] {key} is not a size", self.name),
            problem,
        ));
        None
    }

    fn choice<T: Copy>(
        &mut self,
        key: &str,
        choices: &[(&str, T)],
        hint: impl Fn(&str) -> Option<String>,
    ) -> Option<Spanned<T>> {
        let value = self.value(key)?;
        let span = value.span();
        let quoted: Vec<_> = choices
            .iter()
            .map(|(word, _)| format!("{word:?}"))
            .collect();
        let expected = listed(&quoted, "or");
        let DeValue::String(word) = value.get_ref() else {
            self.wrong_type(key, span, &expected, value.get_ref());
            return None;
        };
        if let Some((_, choice)) = choices.iter().find(|(name, _)| name == word) {
            return Some(Spanned::new(span, *choice));
        }
        let mut problem = Problem::new(
            span,
            format!("[{}] {key} cannot be {word:?}", self.name),
            format!("expected {expected}"),
        );
        if let Some(hint) = hint(word) {
            problem = problem.help(hint);
        } else if choices.len() > 1
            && let Some(near) = nearest(word, choices.iter().map(|(name, _)| *name))
        {
            problem = problem.help(format!("did you mean {near:?}?"));
        }
        self.problems.push(problem);
        None
    }

    /// Reports keys that this section does not have.
    fn unknown_keys(&mut self) {
        let known = SECTIONS
            .iter()
            .find(|(name, _)| *name == self.name)
            .map_or(&[] as &[&str], |(_, keys)| keys);
        for (key, value) in self.table.iter() {
            let word: &str = key.get_ref();
            if known.contains(&word) {
                continue;
            }
            let home = SECTIONS
                .iter()
                .find(|(_, keys)| keys.contains(&word))
                .map(|(section, _)| *section);
            let mut problem = unknown(key.span(), word, self.name, known, home);
            // As scikit-learn has it: a number of components, or a share of what they are to explain.
            if problem.label == "did you mean `rank`?"
                && let Some(share) = share(value.get_ref())
            {
                problem.label = "did you mean `energy`?".into();
                problem.help = Some(format!(
                    "energy = {share}  gives as many triplets as explain that share of the sum of squares"
                ));
            }
            self.problems.push(problem);
        }
    }
}

/// A key that its section does not have; `home` is the section that has it.
fn unknown(
    span: Range<usize>,
    word: &str,
    section: &str,
    known: &[&str],
    home: Option<&str>,
) -> Problem {
    let title = format!("unknown key `{word}` in [{section}]");
    let synonym = SYNONYMS
        .iter()
        .find(|(other, key)| other.eq_ignore_ascii_case(word) && known.contains(key))
        .map(|(_, key)| *key);
    if let Some(near) = synonym.or_else(|| nearest(word, known.iter().copied())) {
        return Problem::new(span, title, format!("did you mean `{near}`?"));
    }
    if let Some(home) = home {
        return Problem::new(span, title, format!("`{word}` belongs below [{home}]"));
    }
    let keys: Vec<_> = known.iter().map(|key| format!("`{key}`")).collect();
    Problem::new(span, title, "no such key").help(format!("[{section}] has {}", keys.join(", ")))
}

/// Reads a host as `ssh` takes it.
///
/// # Errors
/// What is wrong, in words.
pub fn destination(text: &str) -> Result<String, String> {
    let text = text.trim();
    let strange = |c: char| c.is_whitespace() || c.is_control();
    // What begins with a dash would be an option to ssh.
    if text.is_empty() || text.starts_with('-') || text.contains(strange) {
        return Err("expected a host as `ssh` takes it, such as \"alice@big1\"".into());
    }
    match text.rsplit_once(':') {
        Some((host, port))
            if !host.contains(':') && !port.is_empty() && port.parse::<u16>().is_ok() =>
        {
            Err(format!("a port stands like this:  \"ssh://{host}:{port}\""))
        }
        Some(_) | None => Ok(text.to_owned()),
    }
}

fn narrow(number: Spanned<u64>) -> Spanned<u32> {
    Spanned::new(number.span(), *number.get_ref() as u32)
}
