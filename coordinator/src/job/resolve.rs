//! From the job as written, the flags and the defaults to the job as resolved.

use std::io;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::diagnostics::{Problem, Problems, Source};
use super::file::{self, JobFile};
use super::overrides::{FarmFlags, Overrides, holds_two};
use super::resolved::{
    Accuracy, FactorSpec, Farm, Field, Job, MatrixSpec, Method, NamesSpec, Otherwise, Precision,
    ReportSpec, Resources, Tolerance, Wanted,
};
use super::size::{self, Memory};
use super::{DEFAULTS, machine};
use crate::failure::{ExitCode, Failure};

/// A job that may run, with its file for later remarks about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub job: Job,
    pub file: JobFile,
    pub source: Source,
    /// The input is not the one that the file names.
    pub input_from_flag: bool,
    /// The factors to begin with are not those that the file names.
    pub start_from_flag: bool,
    /// What is allowed but looks wrong.
    pub warnings: Vec<String>,
}

/// Why a job cannot run.
#[derive(Clone, Debug)]
pub enum LoadError {
    /// The file cannot be read at all, or what is wrong does not stand in it.
    Unreadable(Failure),
    /// The file can be read and is wrong in places.
    Problems(Problems),
}

/// Reads a job file and resolves it.
///
/// # Errors
/// Every problem of the file at once.
pub fn load(path: &Path, flags: &Overrides) -> Result<Loaded, LoadError> {
    flags.check().map_err(LoadError::Unreadable)?;
    let source = read(path)?;
    let base = match std::path::absolute(path) {
        Ok(path) => path.parent().map_or_else(PathBuf::new, Path::to_path_buf),
        Err(_) => PathBuf::new(),
    };
    resolve(source, &base, flags).map_err(LoadError::Problems)
}

/// Resolves the text of a job file. Paths in it are relative to `base`.
///
/// # Errors
/// Every problem of the file at once.
pub fn resolve(source: Source, base: &Path, flags: &Overrides) -> Result<Loaded, Problems> {
    let mut problems = Vec::new();
    let file = file::read(&source.text, &mut problems);
    let mut warnings = Vec::new();
    let job = fill(&file, base, flags, &mut problems, &mut warnings);
    match job {
        Some(job) if problems.is_empty() => Ok(Loaded {
            job,
            file,
            source,
            input_from_flag: flags.input.is_some(),
            start_from_flag: flags.warm_start.is_some(),
            warnings,
        }),
        _ => Err(Problems {
            source,
            list: problems,
            code: ExitCode::Job,
        }),
    }
}

fn read(path: &Path) -> Result<Source, LoadError> {
    let name = path.display().to_string();
    let unreadable = |failure| Err(LoadError::Unreadable(failure));
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            return unreadable(match error.kind() {
                io::ErrorKind::NotFound => missing(path),
                io::ErrorKind::IsADirectory => Failure::job(format!(
                    "{name} is a directory; a job file was expected"
                ))
                .help(if path.join("factor.toml").is_file() {
                    format!(
                        "there is one inside: {}",
                        path.join("factor.toml").display()
                    )
                } else {
                    "give the job file itself; `svdjob init` writes one".into()
                }),
                _ => Failure::job(format!("the job file {name} cannot be read: {error}")),
            });
        }
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source {
            name,
            // A byte order mark is no part of TOML, yet some editors write it.
            text: text
                .strip_prefix('\u{feff}')
                .map(str::to_owned)
                .unwrap_or(text),
        }),
        Err(error) => {
            let start = error.utf8_error().valid_up_to();
            let byte = error.as_bytes()[start];
            let utf16 = error.as_bytes().starts_with(&[0xff, 0xfe])
                || error.as_bytes().starts_with(&[0xfe, 0xff]);
            let problem = Problem::new(
                start..start + '\u{fffd}'.len_utf8(),
                "the job file is not text in UTF-8",
                format!("byte 0x{byte:02x} is not UTF-8"),
            );
            let problem = problem.help(if utf16 {
                "it looks like UTF-16; save it as UTF-8"
            } else if byte == 0x1f || error.as_bytes().starts_with(&[0x1f, 0x8b]) {
                "it looks compressed; was the data file given instead of the job file?"
            } else {
                "save it as UTF-8"
            });
            Err(LoadError::Problems(Problems {
                source: Source {
                    name,
                    text: String::from_utf8_lossy(error.as_bytes()).into_owned(),
                },
                list: vec![problem],
                code: ExitCode::Job,
            }))
        }
    }
}

fn missing(path: &Path) -> Failure {
    let failure = Failure::job(format!("there is no job file {}", path.display()));
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        return failure.help(format!(
            "there is no directory {} either",
            directory.display()
        ));
    }
    let others: Vec<String> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    let wanted = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    match super::diagnostics::nearest(&wanted, others.iter().map(String::as_str)) {
        Some(near) => failure.help(format!("did you mean {}?", directory.join(near).display())),
        None => failure.help("`svdjob init ratings.csv` writes a job file to begin with"),
    }
}

/// The first of flag, file and default.
fn first<T: Clone>(flag: Option<T>, file: Option<&Spanned<T>>, default: Option<&Spanned<T>>) -> T {
    flag.or_else(|| file.map(|value| value.get_ref().clone()))
        .or_else(|| default.map(|value| value.get_ref().clone()))
        .expect("default.toml has a value")
}

fn fill(
    file: &JobFile,
    base: &Path,
    flags: &Overrides,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> Option<Job> {
    // The defaults lack [matrix] path on purpose; a test sees to it that nothing else is wrong with them.
    let defaults = file::read(DEFAULTS, &mut Vec::new());

    let rows = first(
        None,
        file.matrix.rows.as_ref(),
        defaults.matrix.rows.as_ref(),
    );
    let columns = first(
        None,
        file.matrix.columns.as_ref(),
        defaults.matrix.columns.as_ref(),
    );
    let values = file.matrix.values.as_ref().map(|v| v.get_ref().clone());
    same_fields(
        file,
        [Some(&rows), Some(&columns), values.as_ref()],
        problems,
    );

    let factor = fill_factor(&file.factor, &defaults.factor, flags, problems, warnings);

    let has = machine::memory();
    let memory = match first(
        flags.memory,
        file.resources.memory.as_ref(),
        defaults.resources.memory.as_ref(),
    ) {
        Memory::Bytes(bytes) => bytes,
        Memory::Share(percent) => (has as f64 * percent / 100.0) as u64,
    };
    if memory > has {
        warnings.push(format!(
            "the job may use {} of memory, but this machine or container has {}",
            size::show(memory),
            size::show(has)
        ));
    }
    let allowed = machine::cores();
    let cores = flags
        .cores
        .or_else(|| file.resources.cores.as_ref().map(|cores| *cores.get_ref()))
        .unwrap_or(allowed);
    if cores > allowed {
        warnings.push(format!(
            "the job wants {cores} cores, but this process may run on {allowed}"
        ));
    }

    let resources = Resources {
        memory,
        cores,
        cache: chosen(flags.cache.as_deref(), file.resources.cache.as_ref(), base)
            .unwrap_or_else(machine::cache_directory),
        cache_max: first(
            flags.cache_max,
            file.resources.cache_max.as_ref(),
            defaults.resources.cache_max.as_ref(),
        ),
    };
    let directory = chosen(
        flags.output.as_deref(),
        file.output.directory.as_ref(),
        base,
    )
    .or_else(|| chosen(None, defaults.output.directory.as_ref(), base))
    .expect("default.toml has a directory");

    let nearest = if flags.nearest.is_empty() {
        let list = file.report.nearest.iter().flatten();
        list.map(|name| name.get_ref().clone()).collect()
    } else {
        flags.nearest.clone()
    };
    if !nearest.is_empty() && !factor.which.written().1 {
        warnings.push(
            "nearest needs V, which is not written with which = \"s\": it is left out".into(),
        );
    }
    let names = file.report.names.as_ref().map(|names| NamesSpec {
        path: absolute(base, names.path.get_ref()),
        label: names
            .label
            .as_ref()
            .map_or(Field::Number(1), |field| field.get_ref().clone()),
        name: names
            .name
            .as_ref()
            .map_or(Field::Number(2), |field| field.get_ref().clone()),
    });

    let farm = fill_farm(&file.farm, &defaults.farm, &flags.farm, warnings);

    // Only now: without a path there is no job, but everything else has been looked at.
    let path = chosen(flags.input.as_deref(), file.matrix.path.as_ref(), base);
    if flags.input.is_some() {
        problems.retain(|problem| problem.title != "[matrix] has no `path`");
    }
    Some(Job {
        matrix: MatrixSpec {
            path: path?,
            rows,
            columns,
            values,
            duplicates: first(
                flags.duplicates,
                file.matrix.duplicates.as_ref(),
                defaults.matrix.duplicates.as_ref(),
            ),
        },
        factor,
        warm_start: chosen(
            flags.warm_start.as_deref(),
            file.factor.warm_start.as_ref(),
            base,
        ),
        directory,
        resources,
        farm,
        report: ReportSpec { names, nearest },
    })
}

/// What rounding the factors to f32 may leave: 2^-24 in every entry, times sigma_1 / sigma_k.
const F32_TOLERANCE: f64 = 1e-6;

fn fill_factor(
    file: &file::Factor,
    defaults: &file::Factor,
    flags: &Overrides,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> FactorSpec {
    fn written<T: Copy>(value: Option<&Spanned<T>>) -> Option<T> {
        value.map(|value| *value.get_ref())
    }
    // A flag replaces what the file says, and what the file says against it.
    let energy = flags
        .energy
        .or_else(|| written(file.energy.as_ref()).filter(|_| flags.rank.is_none()));
    let wanted = match energy {
        Some(share) => Wanted::Energy(share),
        None => Wanted::Rank(first(
            flags.rank,
            file.rank.as_ref(),
            defaults.rank.as_ref(),
        )),
    };
    let until = flags.tolerance.is_some()
        || flags.tolerance_kind.is_some()
        || flags.max_reads.is_some()
        || flags.method.is_some_and(|method| method != Method::Auto);
    let iterations = flags
        .power_iterations
        .or_else(|| written(file.power_iterations.as_ref()).filter(|_| !until));
    let (accuracy, method) = match iterations {
        Some(iterations) => (Accuracy::PowerIterations(iterations), Method::Auto),
        None => {
            let tolerance = Tolerance {
                value: first(
                    flags.tolerance,
                    file.tolerance.as_ref(),
                    defaults.tolerance.as_ref(),
                ),
                kind: first(
                    flags.tolerance_kind,
                    file.tolerance_kind.as_ref(),
                    defaults.tolerance_kind.as_ref(),
                ),
                max_reads: first(
                    flags.max_reads,
                    file.max_reads.as_ref(),
                    defaults.max_reads.as_ref(),
                ),
            };
            let method = first(flags.method, file.method.as_ref(), defaults.method.as_ref());
            (Accuracy::Tolerance(tolerance), method)
        }
    };
    // Factors in f32 are rounded: nobody who asks for less than that leaves is meant to have to know.
    let fine = match accuracy {
        Accuracy::Tolerance(tolerance) => tolerance.value < F32_TOLERANCE,
        Accuracy::PowerIterations(_) => false,
    };
    let precision = match flags.precision.or(written(file.precision.as_ref())) {
        Some(precision) => precision,
        None if fine => Precision::F64,
        None => first(None, None, defaults.precision.as_ref()),
    };
    if fine && precision == Precision::F32 {
        warnings.push(format!(
            "factors in f32 are rounded, which alone leaves residuals of about {F32_TOLERANCE:e}: a tolerance below \
             needs precision = \"f64\""
        ));
    }
    let factor = FactorSpec {
        wanted,
        oversample: first(
            flags.oversample,
            file.oversample.as_ref(),
            defaults.oversample.as_ref(),
        ),
        accuracy,
        method,
        block: flags.block.or(written(file.block.as_ref())),
        basis: flags.basis.or(written(file.basis.as_ref())),
        precision,
        seed: first(flags.seed, file.seed.as_ref(), defaults.seed.as_ref()),
        which: first(flags.which, file.which.as_ref(), defaults.which.as_ref()),
        center: first(flags.center, file.center.as_ref(), defaults.center.as_ref()),
        scale: first(flags.scale, file.scale.as_ref(), defaults.scale.as_ref()),
    };
    if factor
        .rank()
        .is_some_and(|rank| rank.checked_add(factor.oversample).is_none())
    {
        let place = file.oversample.as_ref().or(file.rank.as_ref());
        problems.push(Problem::new(
            place.map_or(0..0, Spanned::span),
            "rank and oversample are too large together",
            format!("expected rank + oversample to be at most {}", u32::MAX),
        ));
    }
    problems.extend(crowded(file, flags));
    let other = match (factor.accuracy, factor.method) {
        (Accuracy::PowerIterations(_), _) => Some("power iterations"),
        (_, Method::Exact) => Some("method = \"exact\""),
        (_, Method::Gram) => Some("method = \"gram\""),
        (_, Method::Auto | Method::Krylov) => None,
    };
    if let Some(other) = other
        && (factor.block.is_some() || factor.basis.is_some())
    {
        warnings.push(format!(
            "block and basis are those of the Krylov method; with {other} they mean nothing"
        ));
    }
    factor
}

/// A basis of less than two blocks, at least one of which stands in the file.
fn crowded(file: &file::Factor, flags: &Overrides) -> Option<Problem> {
    let written = |flag: Option<u32>, key: &Option<Spanned<u32>>| match (flag, key) {
        (Some(number), _) => Some((number, None)),
        (None, Some(key)) => Some((*key.get_ref(), Some(key.span()))),
        (None, None) => None,
    };
    let (block, block_at) = written(flags.block, &file.block)?;
    let (basis, basis_at) = written(flags.basis, &file.basis)?;
    if holds_two(basis, block) {
        return None;
    }
    let title = "[factor] basis is smaller than two blocks";
    let least = 2 * u64::from(block);
    Some(match (block_at, basis_at) {
        (Some(block_at), Some(basis_at)) => {
            Problem::new(basis_at, title, format!("expected at least {least}"))
                .also(block_at, "columns of one block")
        }
        (None, Some(basis_at)) => Problem::new(
            basis_at,
            title,
            format!("expected at least {least}, because of --block {block}"),
        ),
        (Some(block_at), None) => Problem::new(
            block_at,
            title,
            format!("expected at most {}, because of --basis {basis}", basis / 2),
        ),
        // Told before the file is read.
        (None, None) => return None,
    })
}

/// The `[farm]` of no job file: flags and defaults.
pub fn farm_of(flags: &FarmFlags) -> Farm {
    let defaults = file::read(DEFAULTS, &mut Vec::new());
    fill_farm(
        &file::Farm::default(),
        &defaults.farm,
        flags,
        &mut Vec::new(),
    )
}

fn fill_farm(
    file: &file::Farm,
    defaults: &file::Farm,
    flags: &FarmFlags,
    warnings: &mut Vec<String>,
) -> Farm {
    fn list<T: Clone>(flags: &[T], file: Option<&Vec<Spanned<T>>>) -> Vec<T> {
        if flags.is_empty() {
            file.into_iter()
                .flatten()
                .map(|item| item.get_ref().clone())
                .collect()
        } else {
            flags.to_vec()
        }
    }
    let find = &flags.find;
    let farm = Farm {
        embedded: flags.embedded,
        discover: first(
            find.no_discover.then_some(false),
            file.discover.as_ref(),
            defaults.discover.as_ref(),
        ),
        nodes: list(&find.node, file.nodes.as_ref()),
        ssh: list(&flags.ssh, file.ssh.as_ref()),
        window: first(find.window, file.window.as_ref(), defaults.window.as_ref()),
        at_least: first(
            flags.at_least,
            file.at_least.as_ref(),
            defaults.at_least.as_ref(),
        ),
        otherwise: first(
            flags.otherwise,
            file.otherwise.as_ref(),
            defaults.otherwise.as_ref(),
        ),
        interface: find
            .interface
            .clone()
            .or_else(|| file.interface.as_ref().map(|name| name.get_ref().clone())),
        key: find
            .farm_key
            .as_deref()
            .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())),
    };
    let asked = farm.discover || !farm.nodes.is_empty() || !farm.ssh.is_empty();
    if !asked && !farm.embedded && farm.otherwise == Otherwise::Fail {
        warnings.push(
            "the job wants a farm, but it looks for no nodes and names none, so there will be none"
                .into(),
        );
    }
    farm
}

/// Rows, columns and values must be three different fields.
fn same_fields(file: &JobFile, fields: [Option<&Field>; 3], problems: &mut Vec<Problem>) {
    let matrix = &file.matrix;
    let written = [&matrix.rows, &matrix.columns, &matrix.values];
    let names = ["rows", "columns", "values"];
    for later in 1..3 {
        for earlier in 0..later {
            let (Some(a), Some(b)) = (fields[earlier], fields[later]) else {
                continue;
            };
            let span = written[later].as_ref().or(written[earlier].as_ref());
            if a == b
                && let Some(span) = span
            {
                let what = match a {
                    Field::Name(name) => format!("the field {name:?}"),
                    Field::Number(number) => format!("field {number}"),
                };
                let (one, other) = (names[earlier], names[later]);
                let unwritten = [(earlier, one), (later, other)]
                    .into_iter()
                    .find(|&(at, _)| written[at].is_none());
                let problem = Problem::new(
                    span.span(),
                    format!("[matrix] {one} and {other} are the same field"),
                    format!("both are {what}"),
                );
                problems.push(match unwritten {
                    Some((_, name)) => problem.help(format!(
                        "`{name}` is left out, so its default holds; write it too"
                    )),
                    None => problem,
                });
            }
        }
    }
}

/// A path from a flag (relative to the current directory) or else from the file (relative to `base`).
fn chosen(flag: Option<&Path>, file: Option<&Spanned<String>>, base: &Path) -> Option<PathBuf> {
    match flag {
        Some(path) => Some(std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())),
        None => file.map(|path| absolute(base, path.get_ref())),
    }
}

fn absolute(base: &Path, text: &str) -> PathBuf {
    if let Some(rest) = text.strip_prefix("~/")
        && let Ok(home) = etcetera::home_dir()
    {
        return home.join(rest);
    }
    // Joining collects "." and doubled separators but keeps "..", which may lead through a link.
    base.join(text).components().collect()
}
